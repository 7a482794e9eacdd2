//! `sphinx eval`: questions with known answers, by one model or by every precision of a checkpoint.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sphinx_convert::ConvertOptions;
use sphinx_quant::gguf::Gguf;
use sphinx_runtime::eval::{Divergence, Scoring, Tallies, Tally, letter, log_softmax};
use sphinx_runtime::{ImageRows, Options, Request, Sampling, Session, Sphinx, Turn};
use sphinx_targets::Target;

use super::convert::{recipe, threads};
use super::{bench, model};
use crate::arguments::{EvalArgs, ScoringArg};
use crate::dataset::{Row, Rows};
use crate::device::{self, Device};
use crate::failure::{Failure, shown};
use crate::output::{self, say};
use crate::progress::{self, Bar};
use crate::table;

/// Put behind a question that is answered by a letter.
const LETTER_PLEASE: &str = "Answer with the option's letter from the given choices directly.";

/// A model to evaluate: its halves and what they are called.
#[derive(Clone)]
struct Contestant {
    language: PathBuf,
    /// Where it is not beside the language half.
    vision: Option<PathBuf>,
    quant: Option<String>,
    vision_quant: Option<String>,
}

impl Contestant {
    /// The model in a file, whose precision the file knows.
    fn named(path: &Path, mmproj: Option<&PathBuf>) -> Contestant {
        Contestant { language: path.to_owned(), vision: mmproj.cloned(), quant: None, vision_quant: None }
    }
}

pub fn run(args: EvalArgs, no_progress: bool) -> Result<()> {
    let device = args.model.device;
    device.check()?;
    match device {
        Device::Cpu => on(&args, no_progress, || device::cpu(args.model.threads)),
        #[cfg(feature = "candle")]
        _ => on(&args, no_progress, || device.candle()),
        #[cfg(not(feature = "candle"))]
        _ => unreachable!("a device that was not built is refused"),
    }
}

fn on<T: Target>(args: &EvalArgs, no_progress: bool, target: impl Fn() -> Result<T>) -> Result<()> {
    if let Some(file) = &args.output
        && !(args.resume && crate::interrupt::partial(file).exists())
    {
        output::free(file, args.force)?;
    }
    let total = check(args)?;
    let directory = args.model.model.is_dir();
    let work;
    let (groups, reference) = if directory {
        if args.model.mmproj.is_some() {
            return Err(Failure::usage("--mmproj goes with a GGUF model; a checkpoint directory brings its own encoders"));
        }
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("sphinx-eval-");
        let place = args.work.clone().unwrap_or_else(std::env::temp_dir);
        work = builder.tempdir_in(&place).map_err(|e| Failure::io(&place, &e))?;
        crate::interrupt::holds(work.path());
        precisions(args, work.path(), no_progress)?
    } else {
        if !args.quant.is_empty() || !args.vision_quant.is_empty() {
            return Err(Failure::usage("--quant and --vision-quant go with a checkpoint directory; a GGUF model has its precision"));
        }
        let reference = args.against.as_deref().map(|path| Contestant::named(path, None));
        (vec![vec![Contestant::named(&args.model.model, args.model.mmproj.as_ref())]], reference)
    };
    let passes: usize = groups.iter().map(Vec::len).sum::<usize>() + usize::from(reference.is_some());
    let bar = progress::counter("eval", (total * passes) as u64, no_progress);
    let spool = reference.map(|c| Spool::fill(args, &target, &c, total, &bar)).transpose()?;
    let mut records = args.output.as_deref().map(|file| Records::open(file, args.resume)).transpose()?;
    let mut results = Vec::new();
    for group in &groups {
        results.extend(evaluate(args, &target, group, total, spool.as_ref(), records.as_mut(), &bar)?);
    }
    bar.finish_and_clear();
    if let Some(records) = records {
        records.finish()?;
    }
    print(args, total, &results)
}

/// How many rows there are; every one of them can be asked and judged.
fn check(args: &EvalArgs) -> Result<usize> {
    let mut rows = Rows::open(&args.data)?;
    let mut total = 0;
    while total < args.limit.unwrap_or(usize::MAX)
        && let Some(row) = rows.next()?
    {
        let (answer, choices) = (answer(&rows, &row)?, row.choices());
        let scoring = scoring(args, &row);
        if matches!(scoring, Scoring::Choice | Scoring::Likelihood) && !(2..=26).contains(&choices.len()) {
            return Err(rows.bad(row.line, format!("{} choices, expected 2 to 26", choices.len())));
        }
        if !scoring.can_be_met(&answer, &choices) {
            return Err(rows.bad(row.line, format!("no reply can meet the answer {answer:?} under the rule \"{}\"", scoring.name())));
        }
        total += 1;
    }
    if total == 0 {
        return Err(Failure::invalid(format!(
            "{}: no row in it — a row is {{\"question\": …, \"image\": …, \"answer\": …}}",
            shown(&args.data)
        )));
    }
    Ok(total)
}

fn answer(rows: &Rows, row: &Row) -> Result<String> {
    row.answer().ok_or_else(|| rows.bad(row.line, "no answer to hold a reply against".into()))
}

fn scoring(args: &EvalArgs, row: &Row) -> Scoring {
    match args.scoring {
        None if row.choices().is_empty() => Scoring::Exact,
        None | Some(ScoringArg::Choice) => Scoring::Choice,
        Some(ScoringArg::Exact) => Scoring::Exact,
        Some(ScoringArg::YesNo) => Scoring::YesNo,
        Some(ScoringArg::Number) => Scoring::Number(args.epsilon),
        Some(ScoringArg::Likelihood) => Scoring::Likelihood,
    }
}

/// The question as the model gets it.
fn question(row: &Row, scoring: Scoring) -> String {
    let asked = row.question.clone().or_else(|| row.text.clone()).unwrap_or_default();
    if scoring != Scoring::Choice {
        return asked;
    }
    let options: String = row.choices().iter().enumerate().map(|(i, c)| format!("\n{}. {c}", letter(i))).collect();
    format!("{asked}{options}\n{LETTER_PLEASE}")
}

/// Converts a checkpoint to every precision asked for: contestants by precision of the encoders, and the F16 pair.
fn precisions(args: &EvalArgs, work: &Path, no_progress: bool) -> Result<(Vec<Vec<Contestant>>, Option<Contestant>)> {
    let or_f16 = |names: &[String]| if names.is_empty() { vec!["F16".to_owned()] } else { names.to_vec() };
    let (quants, visions) = (or_f16(&args.quant), or_f16(&args.vision_quant));
    for name in quants.iter().chain(&visions) {
        recipe(name)?;
    }
    let file = |name: &str| work.join(format!("{name}.gguf"));
    let mut made: Vec<(String, String)> = Vec::new();
    let mut convert = |quant: &str, vision: &str| -> Result<()> {
        let to = file(&format!("{}-{quant}-{vision}", made.len()));
        let mut options = ConvertOptions::new(vec![args.model.model.clone()], to.clone(), recipe(quant)?, recipe(vision)?);
        options.threads = threads(args.model.threads);
        sphinx_convert::convert(&options, &Bar::new(no_progress))?;
        std::fs::rename(&to, file(quant)).map_err(|e| Failure::io(&to, &e))?;
        let mmproj = sphinx_convert::mmproj_path(&to);
        std::fs::rename(&mmproj, sphinx_convert::mmproj_path(&file(vision))).map_err(|e| Failure::io(&mmproj, &e))?;
        made.push((quant.into(), vision.into()));
        Ok(())
    };
    // Both halves are converted together; a half that is there already is written again, to the same bytes.
    convert("F16", "F16")?;
    for i in 0..quants.len().max(visions.len()) {
        let (quant, vision) = (&quants[i.min(quants.len() - 1)], &visions[i.min(visions.len() - 1)]);
        if (quant.as_str(), vision.as_str()) != ("F16", "F16") {
            convert(quant, vision)?;
        }
    }
    let pair = |quant: &String, vision: &String| Contestant {
        language: file(quant),
        vision: Some(sphinx_convert::mmproj_path(&file(vision))),
        quant: Some(quant.clone()),
        vision_quant: Some(vision.clone()),
    };
    let groups = visions.iter().map(|vision| quants.iter().map(|quant| pair(quant, vision)).collect()).collect();
    let f16 = "F16".to_owned();
    let reference = match &args.against {
        Some(path) => Contestant::named(path, None),
        None => pair(&f16, &f16),
    };
    Ok((groups, Some(reference)))
}

fn open<T: Target>(args: &EvalArgs, target: &impl Fn() -> Result<T>, who: &Contestant) -> Result<Sphinx<T>> {
    let options = Options { mmproj: who.vision.clone(), ..model::options(&args.model) };
    Ok(Sphinx::open(target()?, &who.language, &options)?)
}

/// The pictures of rows, encoded; a picture that several rows in succession share is encoded once.
#[derive(Default)]
struct Seen {
    names: Vec<String>,
    image: Option<ImageRows>,
    encode_s: f64,
}

impl Seen {
    fn look<T: Target>(&mut self, model: &Sphinx<T>, rows: &Rows, row: &Row) -> Result<()> {
        let names: Vec<String> = row.picture_names().cloned().collect();
        self.encode_s = 0.0;
        if names != self.names || (self.image.is_none() && !names.is_empty()) {
            let start = Instant::now();
            self.image = model.encode_all(&rows.pictures(row)?)?;
            self.encode_s = start.elapsed().as_secs_f64();
            self.names = names;
        }
        Ok(())
    }
}

/// Log-probabilities `[positions, vocabulary]` of the tokens of `answer` and the end of the reply, each after those before it.
fn distributions<T: Target>(
    model: &Sphinx<T>,
    session: &mut Session<'_, T>,
    question: &str,
    answer: &str,
    image: Option<&ImageRows>,
) -> Result<(Vec<f32>, Vec<u32>)> {
    let template = &model.params().template;
    let prompt = model.tokenizer().encode_with_bos(&template.question(None, question));
    let turn = Turn { question: question.into(), answer: Some(answer.into()) };
    let whole = model.tokenizer().encode_with_bos(&template.render(None, &[turn])?);
    let begins = prompt.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let vocabulary = model.params().vocabulary;
    let mut logits = session.logits(&whole, image)?;
    let mut tail = logits.split_off((begins - 1) * vocabulary);
    tail.truncate((whole.len() - begins) * vocabulary);
    log_softmax(&mut tail, vocabulary);
    Ok((tail, whole[begins..].to_vec()))
}

/// What the reference makes of every answer, in a file without a name: a vocabulary per position is too much for memory.
struct Spool {
    file: File,
    /// Bytes before each row's numbers, and the end.
    at: Vec<u64>,
    vocabulary: usize,
}

impl Spool {
    fn fill<T: Target>(
        args: &EvalArgs,
        target: &impl Fn() -> Result<T>,
        who: &Contestant,
        total: usize,
        bar: &ProgressBar,
    ) -> Result<Spool> {
        let model = open(args, target, who)?;
        let place = args.work.clone().unwrap_or_else(std::env::temp_dir);
        let file = tempfile::tempfile_in(&place).map_err(|e| Failure::io(&place, &e))?;
        let mut spool = Spool { file, at: vec![0], vocabulary: model.params().vocabulary };
        let (mut rows, mut seen, mut session) = (Rows::open(&args.data)?, Seen::default(), model.session()?);
        for _ in 0..total {
            let Some(row) = rows.next()? else { break };
            seen.look(&model, &rows, &row)?;
            let question = question(&row, scoring(args, &row));
            let (numbers, _) = distributions(&model, &mut session, &question, &answer(&rows, &row)?, seen.image.as_ref())?;
            let bytes: &[u8] = bytemuck::cast_slice(&numbers);
            spool.file.write_all(bytes).map_err(|e| Failure::io(&place, &e))?;
            spool.at.push(spool.at.last().copied().unwrap_or(0) + bytes.len() as u64);
            bar.inc(1);
        }
        Ok(spool)
    }

    fn row(&self, i: usize) -> Result<Vec<f32>> {
        let mut numbers = vec![0f32; ((self.at[i + 1] - self.at[i]) / 4) as usize];
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(self.at[i])).and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut numbers)));
        read.map_err(|e| Failure::io(Path::new("the temporary file of the reference"), &e))?;
        Ok(numbers)
    }
}

/// Records, written as they come and renamed at the end; those of an interrupted run come back in their order.
struct Records {
    path: PathBuf,
    out: BufWriter<File>,
    earlier: VecDeque<Value>,
}

impl Records {
    fn open(path: &Path, resume: bool) -> Result<Records> {
        let partial = crate::interrupt::partial(path);
        let io = |e| Failure::io(&partial, &e);
        let mut earlier = VecDeque::new();
        let mut whole = 0;
        if resume && partial.exists() {
            let mut lines = BufReader::new(File::open(&partial).map_err(io)?);
            let mut line = String::new();
            // A line that was cut off is made again.
            while lines.read_line(&mut line).map_err(io)? > 0 && line.ends_with('\n') {
                let record = serde_json::from_str(&line);
                earlier.push_back(
                    record.map_err(|e| Failure::invalid(format!("{}: no record: {e} — start anew without --resume", shown(&partial))))?,
                );
                whole += line.len() as u64;
                line.clear();
            }
        }
        let file = File::options().create(true).write(true).truncate(whole == 0).open(&partial).map_err(io)?;
        file.set_len(whole).map_err(io)?;
        let mut out = BufWriter::new(file);
        out.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Records { path: path.to_owned(), out, earlier })
    }

    fn write(&mut self, record: &Value) -> Result<()> {
        writeln!(self.out, "{record}").and_then(|()| self.out.flush()).map_err(|e| Failure::io(&self.path, &e))
    }

    fn finish(self) -> Result<()> {
        let partial = crate::interrupt::partial(&self.path);
        let done = self.out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all());
        done.and_then(|()| std::fs::rename(&partial, &self.path)).map_err(|e| Failure::io(&self.path, &e))
    }
}

/// What came of one contestant.
struct Outcome {
    who: Contestant,
    bytes: (u64, Option<u64>),
    tallies: Tallies,
    divergence: Divergence,
}

/// Asks every row of the models of `group`, which have the same encoders.
fn evaluate<T: Target>(
    args: &EvalArgs,
    target: &impl Fn() -> Result<T>,
    group: &[Contestant],
    total: usize,
    spool: Option<&Spool>,
    mut records: Option<&mut Records>,
    bar: &ProgressBar,
) -> Result<Vec<Outcome>> {
    let models = group.iter().map(|who| open(args, target, who)).collect::<Result<Vec<_>>>()?;
    let mut sessions = models.iter().map(Sphinx::session).collect::<Result<Vec<_>, _>>()?;
    let mut outcomes = Vec::new();
    for (who, model) in group.iter().zip(&models) {
        if let Some(spool) = spool.filter(|s| s.vocabulary != model.params().vocabulary) {
            let (own, other) = (model.params().vocabulary, spool.vocabulary);
            let what = format!("{}: a vocabulary of {own}, that of the model to compare with has {other}", shown(&who.language));
            return Err(Failure::usage(format!("{what} — compare models with the same tokens")));
        }
        let mut who = who.clone();
        who.quant = who.quant.or_else(|| bench::precision(model.language()).map(str::to_owned));
        let vision = model.source().has_vision().then(|| model.source().open_vision()).transpose()?;
        who.vision_quant = who.vision_quant.or_else(|| vision.as_ref().and_then(bench::precision).map(str::to_owned));
        let bytes = (model.language().file_bytes(), vision.as_ref().map(Gguf::file_bytes));
        outcomes.push(Outcome { who, bytes, tallies: Tallies::default(), divergence: Divergence::default() });
    }
    let (mut rows, mut seen) = (Rows::open(&args.data)?, Seen::default());
    for i in 0..total {
        let Some(row) = rows.next()? else { break };
        for ((model, session), outcome) in models.iter().zip(&mut sessions).zip(&mut outcomes) {
            let earlier = records.as_mut().and_then(|r| r.earlier.pop_front());
            let fresh = earlier.is_none();
            let record = match earlier {
                Some(record) => same(args, &rows, &row, &outcome.who, spool.is_some(), record)?,
                None => {
                    seen.look(&models[0], &rows, &row)?;
                    let reference = spool.map(|s| s.row(i)).transpose()?;
                    ask(model, session, &outcome.who, Asked { args, row: &row, answer: answer(&rows, &row)?, seen: &seen, reference })?
                }
            };
            let groups: Vec<(&str, &str)> =
                args.by.iter().filter_map(|by| record["groups"][by].as_str().map(|value| (by.as_str(), value))).collect();
            outcome.tallies.add(record["right"] == true, !record["parsed"].is_null(), groups);
            if let (Some(sum), Some(agreed), Some(n)) =
                (record["kl"]["sum"].as_f64(), record["kl"]["agreed"].as_u64(), record["kl"]["positions"].as_u64())
            {
                outcome.divergence.join(Divergence { sum, agreed: agreed as usize, positions: n as usize });
            }
            if let Some(records) = records.as_mut().filter(|_| fresh) {
                records.write(&record)?;
            }
            bar.inc(1);
        }
    }
    Ok(outcomes)
}

fn hash(prompt: &str, row: &Row) -> String {
    let mut hash = Sha256::new();
    hash.update(prompt);
    for name in row.picture_names() {
        hash.update([0]);
        hash.update(name);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn label(who: &Contestant) -> Value {
    json!({ "quant": who.quant, "vision_quant": who.vision_quant })
}

/// The record of an earlier run, if it is of this row and this model.
fn same(args: &EvalArgs, rows: &Rows, row: &Row, who: &Contestant, compares: bool, record: Value) -> Result<Value> {
    let scoring = scoring(args, row);
    let asked =
        record["line"] == row.line && record["model"] == label(who) && record["prompt_sha256"] == hash(&question(row, scoring), row);
    if asked && record["scoring"] == scoring.name() && record["kl"].is_null() != compares {
        return Ok(record);
    }
    let line = &record["line"];
    Err(rows.bad(row.line, format!("the records to resume are of other questions, models or rules (line {line} there); start anew")))
}

/// A row to ask: how, what the right answer is, and the pictures as the model sees them.
struct Asked<'a> {
    args: &'a EvalArgs,
    row: &'a Row,
    answer: String,
    seen: &'a Seen,
    reference: Option<Vec<f32>>,
}

/// Asks and judges one row.
fn ask<T: Target>(model: &Sphinx<T>, session: &mut Session<'_, T>, who: &Contestant, asked: Asked<'_>) -> Result<Value> {
    let Asked { args, row, answer, seen, reference } = asked;
    let (scoring, choices) = (scoring(args, row), row.choices());
    let prompt = question(row, scoring);
    let image = seen.image.as_ref();
    let mut options = Vec::new();
    let mut reply = None;
    let text = if scoring == Scoring::Likelihood {
        for choice in &choices {
            let (numbers, ids) = distributions(model, session, &prompt, choice, image)?;
            let each = numbers.chunks_exact(model.params().vocabulary).zip(&ids).map(|(row, &id)| f64::from(row[id as usize]));
            options.push(each.sum::<f64>() / ids.len().max(1) as f64);
        }
        let best = options.iter().enumerate().fold(0, |best, (i, &p)| if p > options[best] { i } else { best });
        choices[best].clone()
    } else {
        let ids = model.tokenizer().encode_with_bos(&model.params().template.question(None, &prompt));
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let request = Request { sampling, max_tokens: args.max_tokens, stop: &model.params().stop, truncate: false };
        let made = session.generate(&ids, image, &request, &mut |_| ControlFlow::Continue(()))?;
        reply.insert(made).text.trim().to_owned()
    };
    let verdict = scoring.judge(&text, &answer, &choices);
    let kl = match reference {
        None => Value::Null,
        Some(reference) => {
            let (own, _) = distributions(model, session, &prompt, &answer, image)?;
            if own.len() != reference.len() {
                return Err(Failure::usage("the models split the answer into different tokens — compare models with the same tokenizer"));
            }
            let mut d = Divergence::default();
            d.add(&reference, &own, model.params().vocabulary);
            json!({ "sum": d.sum, "agreed": d.agreed, "positions": d.positions })
        }
    };
    let groups: serde_json::Map<String, Value> =
        args.by.iter().filter_map(|by| row.field(by).map(|value| (by.clone(), value.into()))).collect();
    let options: Vec<Value> = choices.iter().zip(&options).map(|(c, p)| json!({ "choice": c, "logprob_per_token": p })).collect();
    let timings = reply.as_ref().map(|r| r.timings).unwrap_or_default();
    Ok(json!({
        "id": row.field("id"), "line": row.line, "model": label(who), "prompt_sha256": hash(&prompt, row), "question": prompt,
        "answer": answer, "scoring": scoring.name(), "text": text, "parsed": verdict.parsed, "right": verdict.right,
        "tokens": reply.as_ref().map(|r| &r.tokens), "finish_reason": reply.as_ref().map(|r| r.finish.name()), "options": options,
        "groups": groups, "kl": kl,
        "ms": { "encode": seen.encode_s * 1e3, "prefill": timings.prefill_s * 1e3, "decode": timings.decode_s * 1e3 },
    }))
}

fn percent(x: f64) -> String {
    format!("{:.1}", 100.0 * x)
}

/// The cells of a tally: right, of, share, interval, unread.
fn cells(t: &Tally) -> Vec<String> {
    let share = t.accuracy().map_or(String::new(), percent);
    let interval = t.interval().map_or(String::new(), |(lo, hi)| format!("{}–{}", percent(lo), percent(hi)));
    vec![t.right.to_string(), t.total.to_string(), share, interval, t.unread.to_string()]
}

fn tally_json(t: &Tally) -> Value {
    json!({ "right": t.right, "total": t.total, "accuracy": t.accuracy(), "interval_95": t.interval().map(|(lo, hi)| [lo, hi]), "unread": t.unread })
}

fn print(args: &EvalArgs, total: usize, results: &[Outcome]) -> Result<()> {
    if args.json {
        let models: Vec<Value> = results
            .iter()
            .map(|r| {
                let groups: serde_json::Map<String, Value> = r
                    .tallies
                    .groups
                    .iter()
                    .map(|(by, all)| {
                        (by.clone(), all.iter().map(|(value, t)| (value.clone(), tally_json(t))).collect::<serde_json::Map<_, _>>().into())
                    })
                    .collect();
                let d = r.divergence;
                json!({
                    "quant": r.who.quant, "vision_quant": r.who.vision_quant,
                    "bytes": { "language": r.bytes.0, "vision": r.bytes.1 },
                    "all": tally_json(&r.tallies.all), "groups": groups,
                    "against": d.mean().map(|kl| json!({ "kl_nats": kl, "top1": d.agreement(), "positions": d.positions })),
                })
            })
            .collect();
        let out = json!({ "dataset": "jsonl", "path": args.data.to_string_lossy(), "rows": total, "models": models });
        return say!("{out}");
    }
    let show = |header: &[&str], rows: Vec<Vec<String>>| {
        if !args.markdown {
            return say!("{}", table::plain(header, rows));
        }
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(header.to_vec()).add_rows(rows);
        say!("{table}")
    };
    if let [one] = results {
        let mut rows = Vec::new();
        for (by, all) in &one.tallies.groups {
            rows.extend(all.iter().map(|(value, t)| [vec![format!("{by} {value}")], cells(t)].concat()));
        }
        rows.push([vec!["all".to_owned()], cells(&one.tallies.all)].concat());
        show(&["", "right", "of", "%", "95 % interval", "unread"], rows)?;
    } else {
        let mut columns: Vec<(&String, &String)> = Vec::new();
        for (by, all) in results.iter().flat_map(|r| &r.tallies.groups) {
            columns.extend(all.keys().map(|value| (by, value)));
        }
        columns.sort();
        columns.dedup();
        let mut header = vec!["language", "encoders", "size", "%", "95 % interval", "KL, nats", "top-1 %"];
        header.extend(columns.iter().map(|(_, value)| value.as_str()));
        let rows = results.iter().map(|r| {
            let (t, d) = (&r.tallies, r.divergence);
            let share = |t: Option<&Tally>| t.and_then(Tally::accuracy).map_or(String::new(), percent);
            let interval = t.all.interval().map_or(String::new(), |(lo, hi)| format!("{}–{}", percent(lo), percent(hi)));
            let mut row = vec![
                r.who.quant.clone().unwrap_or_default(),
                r.who.vision_quant.clone().unwrap_or_default(),
                table::bytes(r.bytes.0 + r.bytes.1.unwrap_or(0)),
                share(Some(&t.all)),
                interval,
                d.mean().map_or(String::new(), |kl| format!("{kl:.5}")),
                d.agreement().map_or(String::new(), percent),
            ];
            row.extend(columns.iter().map(|&(by, value)| share(t.groups.get(by).and_then(|g| g.get(value)))));
            row
        });
        show(&header, rows.collect())?;
    }
    if let ([one], false) = (results, args.markdown)
        && let (Some(kl), Some(top1)) = (one.divergence.mean(), one.divergence.agreement())
    {
        let (n, top1) = (one.divergence.positions, percent(top1));
        say!("against the other model: KL divergence {kl:.5} nats, top-1 agreement {top1} % over {n} positions")?;
    }
    Ok(())
}
