//! `sphinx chat`: a conversation, about a picture if one is given.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::Result;
use rustyline::error::ReadlineError;
use sphinx_runtime::vision::ImageRows;
use sphinx_runtime::{FinishReason, Reply, Session, Sphinx, Turn};
use sphinx_targets::Target;

use super::model;
use super::run::stream;
use crate::arguments::ChatArgs;
use crate::device::{self, Job};
use crate::failure::{self, Failure, shown};
use crate::output::{self, note};

const HELP: &str = "/image FILE  look at another picture (a new conversation)
/clear       forget the conversation
/stats       times and memory of the last answer
/save FILE   write the conversation as text
/quit        leave";

pub fn run(args: ChatArgs, verbose: u8) -> Result<()> {
    if args.generate.raw {
        return Err(Failure::usage("--raw makes no conversation — use sphinx run"));
    }
    device::dispatch(args.model.device, args.model.threads, Chat { args: &args, verbose })
}

struct Chat<'a> {
    args: &'a ChatArgs,
    verbose: u8,
}

/// Where lines come from: an editor on a terminal, or a pipe.
enum Lines {
    Editor(Box<rustyline::DefaultEditor>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn open() -> Result<Lines> {
        if std::io::stdin().is_terminal() {
            return Ok(Lines::Editor(Box::new(rustyline::DefaultEditor::new()?)));
        }
        Ok(Lines::Pipe(std::io::stdin().lock().lines()))
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Editor(editor) => match editor.readline("> ") {
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(e) => Err(e.into()),
            },
            Lines::Pipe(lines) => Ok(lines.next().transpose()?),
        }
    }
}

/// The conversation so far.
struct State<'m, T: Target> {
    model: &'m Sphinx<T>,
    session: Session<'m, T>,
    image: Option<ImageRows>,
    turns: Vec<Turn>,
    last: Option<Reply>,
}

impl Job for Chat<'_> {
    type Out = ();

    fn run<T: Target>(self, target: T) -> Result<()> {
        let model = model::open(target, &self.args.model)?;
        let image = self.args.image.as_deref().map(|file| model::encode(&model, file, &mut ())).transpose()?;
        let mut state = State { model: &model, session: model.session()?, image, turns: Vec::new(), last: None };
        let mut lines = Lines::open()?;
        if matches!(lines, Lines::Editor(_)) {
            note!("Ask, or type /help.");
        }
        while let Some(line) = lines.next()? {
            let line = line.trim();
            let (word, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(w, r)| (w, r.trim()));
            // A slip in a conversation is answered, not fatal.
            let done = match word {
                "" => Ok(()),
                "/quit" | "/exit" => break,
                "/help" => {
                    note!("{HELP}");
                    Ok(())
                }
                "/clear" => {
                    state.turns.clear();
                    Ok(())
                }
                "/image" => state.look(Path::new(rest)),
                "/stats" => {
                    state.stats();
                    Ok(())
                }
                "/save" => state.save(Path::new(rest)),
                w if w.starts_with('/') => Err(Failure::usage(format!("{w}: no such command — try /help"))),
                _ => self.ask(&mut state, line),
            };
            if let Err(e) = done {
                if failure::reader_left(&e) {
                    return Err(e);
                }
                note!("error: {}", failure::line(&e));
            }
        }
        Ok(())
    }
}

impl Chat<'_> {
    fn ask<T: Target>(&self, state: &mut State<'_, T>, question: &str) -> Result<()> {
        let generate = &self.args.generate;
        state.turns.push(Turn { question: question.into(), answer: None });
        let outcome = state.answer(generate);
        match outcome {
            Ok(reply) => {
                if let Some(turn) = state.turns.last_mut() {
                    turn.answer = Some(reply.text.trim().to_owned());
                }
                if reply.finish == FinishReason::Length {
                    note!("(cut off at {} tokens; --max-tokens allows more)", reply.tokens.len());
                }
                state.last = Some(reply);
                if self.verbose > 0 {
                    state.stats();
                }
                Ok(())
            }
            Err(e) => {
                state.turns.pop();
                Err(e)
            }
        }
    }
}

impl<T: Target> State<'_, T> {
    fn answer(&mut self, generate: &crate::arguments::GenerateArgs) -> Result<Reply> {
        let text = self.model.params().template.render(generate.system.as_deref(), &self.turns)?;
        let (fewest, room) = (self.model.tokenizer().fewest_ids(text.len()), self.session.capacity());
        if fewest > room && !generate.truncate {
            return Err(Failure::usage(format!("the prompt needs at least {fewest} tokens, the context has {room} — shorten it")));
        }
        let ids = self.model.tokenizer().encode_with_bos(&text);
        let stops = model::stops(self.model, generate);
        let reply = stream(&mut self.session, &ids, self.image.as_ref(), &model::request(generate, &stops), false)?;
        output::text("\n")?;
        Ok(reply)
    }

    fn look(&mut self, file: &Path) -> Result<()> {
        if file.as_os_str().is_empty() {
            return Err(Failure::usage("/image needs a file"));
        }
        self.image = Some(model::encode(self.model, file, &mut ())?);
        self.turns.clear();
        note!("looking at {}", shown(file));
        Ok(())
    }

    fn stats(&self) {
        match &self.last {
            Some(reply) => {
                model::stage_table(&model::reply_stages(self.model.load_s(), self.image.as_ref(), reply));
                note!("positions: {} of {}", self.session.positions(), self.session.capacity());
            }
            None => note!("nothing was asked yet"),
        }
    }

    fn save(&self, file: &Path) -> Result<()> {
        if file.as_os_str().is_empty() {
            return Err(Failure::usage("/save needs a file"));
        }
        output::free(file, false)?;
        output::write(file, |partial| {
            let mut f = std::fs::File::create(partial)?;
            for turn in &self.turns {
                writeln!(f, "Human: {}\nAssistant: {}\n", turn.question, turn.answer.as_deref().unwrap_or(""))?;
            }
            Ok(())
        })?;
        note!("saved {}", shown(file));
        Ok(())
    }
}
