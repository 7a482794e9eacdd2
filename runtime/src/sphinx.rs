//! A model, ready to be asked.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::{KvType, Target};

use crate::decoder::Decoder;
use crate::experts::{Policy, Streaming};
use crate::plan::{Plan, Priced, Wish};
use crate::session::{Budget, Reply, Request, Session};
use crate::source::ahead::Ahead;
use crate::source::{LanguageParams, Source};
use crate::tokenizer::Tokenizer;
use crate::vision::{ImageRows, Observe, Picture, Vision};
use crate::{Result, RuntimeError};

/// How a model is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The vision half; by default `mmproj-NAME.gguf` beside `NAME.gguf`.
    pub mmproj: Option<PathBuf>,
    /// Positions of a session; by default what the file says.
    pub context: Option<usize>,
    /// How keys and values are kept; by default F16, and F32 when the language weights are.
    pub kv: Option<KvType>,
    /// Rows of a prompt that are run at once; by default 512, and 4096 for a mixture, which reads each of its experts once per
    /// layer for every such piece. Results do not depend on it. Memory is taken as rows need it, not for the largest piece.
    pub chunk: Option<usize>,
    /// Bytes for everything; by default what the machine has free. Kept by targets that compute in place.
    pub memory: Option<u64>,
    /// Bytes of the cache that a mixture's experts are streamed into; by default what the budget leaves, and no streaming where
    /// all of them fit. Where a target copies weights to a device, the cache is there.
    pub expert_cache: Option<u64>,
    /// Which expert gives way in it.
    pub expert_policy: Policy,
    /// Compare checksums of experts at every read rather than the first.
    pub verify_reads: bool,
    /// Streams experts just so, whatever there is room for.
    pub streaming: Option<Streaming>,
    /// So many decoder layers stay in memory, whatever there is room for; the others are read for every run.
    pub resident_layers: Option<usize>,
    /// Encoders are read block by block and dropped again, whatever there is room for.
    pub stream_encoders: bool,
    /// No picture will come: memory is planned without encoders.
    pub text_only: bool,
    /// Whether what a mixture asks for is written down, see [`Provider::take_trace`](crate::experts::Provider::take_trace).
    pub trace: bool,
}

/// A SPHINX model, or any other LLaMA, on a target.
pub struct Sphinx<T: Target> {
    target: T,
    source: Source,
    tokenizer: Tokenizer,
    decoder: Decoder<T>,
    vision: OnceLock<Vision<T>>,
    context: usize,
    kv: KvType,
    plan: Plan,
    load_s: f64,
    /// What still reads weights ahead of their use.
    _ahead: Option<Ahead>,
    vision_ahead: OnceLock<Option<Ahead>>,
}

impl<T: Target> Sphinx<T> {
    /// Opens the model whose language half is at `path`. Weights stay in the file; the vision half is opened when it
    /// is first needed.
    ///
    /// # Errors
    /// [`RuntimeError::Quant`] and [`RuntimeError::Invalid`] for files that cannot be run, [`RuntimeError::Usage`] for
    /// options that make no sense.
    pub fn open(target: T, path: &Path, options: &Options) -> Result<Sphinx<T>> {
        let start = Instant::now();
        let source = Source::open(path, options.mmproj.as_deref())?;
        let params = source.params();
        let context = options.context.unwrap_or(params.context);
        if !(2..=1 << 24).contains(&context) {
            return Err(RuntimeError::Usage(format!("the context is {context}, expected 2 to {}", 1 << 24)));
        }
        if options.chunk.is_some_and(|chunk| !(1..=1 << 16).contains(&chunk)) {
            let chunk = options.chunk.unwrap_or_default();
            return Err(RuntimeError::Usage(format!("prompts are to be run in pieces of {chunk}, expected 1 to {}", 1 << 16)));
        }
        if context > params.context {
            tracing::warn!("a context of {context} is more than the {} that the model was made for", params.context);
        }
        for name in &params.unused_tensors {
            tracing::warn!("tensor \"{}\" is not used", printable(name));
        }
        warn_of_rest(source.language());
        let kv = options.kv.unwrap_or(if params.whole_precision { KvType::F32 } else { KvType::F16 });
        let mut plan = Sphinx::plan_for(&target, &source, context, kv, options)?;
        plan.encoders_streamed |= options.stream_encoders;
        let tokenizer = Tokenizer::from_gguf(source.language())?;
        let streaming = options.streaming.or(plan.streaming);
        let load = || Decoder::load(&target, source.language(), params, streaming, options.trace);
        let mut decoder = source.language().sparsely(load)?;
        let resident = options.resident_layers.unwrap_or(plan.resident_layers);
        if resident < params.layers {
            decoder.stream_layers(source.language(), resident);
        }
        // Of a table of embeddings few rows are used, and of a mixture not all experts.
        let table = if params.tied_output { "" } else { names::TOKEN_EMBD };
        let ahead = if plan.ahead { Ahead::start(source.language(), |name| name != table && !name.contains("_exps.")) } else { None };
        let load_s = start.elapsed().as_secs_f64();
        tracing::info!("{} on {}, loaded in {load_s:.3} s", path.display(), target.name());
        Ok(Sphinx {
            target,
            tokenizer,
            decoder,
            vision: OnceLock::new(),
            context,
            kv,
            plan,
            load_s,
            source,
            _ahead: ahead,
            vision_ahead: OnceLock::new(),
        })
    }

    /// How the model is to be held in memory. Where a target does not compute in place, everything is resident.
    fn plan_for(target: &T, source: &Source, context: usize, kv: KvType, options: &Options) -> Result<Plan> {
        let wish = Wish {
            memory: options.memory,
            context,
            kv,
            chunk: options.chunk,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            expert_cache: options.expert_cache,
            policy: options.expert_policy,
            verify_reads: options.verify_reads,
        };
        // A vision half that is broken is said to be when a picture comes.
        let vision = if !options.text_only && source.has_vision() { source.open_vision().ok() } else { None };
        let price = |vision: Option<&Gguf>| Priced::new(source.language(), source.params(), vision);
        let priced = match price(vision.as_ref()) {
            Err(_) if vision.is_some() => price(None)?,
            priced => priced?,
        };
        if target.computes_in_place() {
            return priced.plan(&wish);
        }
        if options.memory.is_some() {
            tracing::warn!("a budget is kept by the cpu device alone; here all weights are copied");
        }
        priced.copied(&wish, target.free_bytes())
    }

    /// How the model is held in memory.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What computes.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// Sizes and constants of the decoder.
    pub fn params(&self) -> &LanguageParams {
        self.source.params()
    }

    /// The language file.
    pub fn language(&self) -> &Gguf {
        self.source.language()
    }

    /// The model's two files.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Text to ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder<T> {
        &self.decoder
    }

    /// Positions of a session.
    pub fn context(&self) -> usize {
        self.context
    }

    /// How sessions keep keys and values.
    pub fn kv(&self) -> KvType {
        self.kv
    }

    /// Seconds that opening took.
    pub fn load_s(&self) -> f64 {
        self.load_s
    }

    /// The encoders, opened on first use. A picture becomes [`Vision::rows_of`] its size rows, at most
    /// [`LanguageParams::image_rows`].
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] when the model has no vision half, or one of another model.
    pub fn vision(&self) -> Result<&Vision<T>> {
        if let Some(vision) = self.vision.get() {
            return Ok(vision);
        }
        let file = self.source.open_vision()?;
        let fine = self.params().is_mixture();
        let vision = file.sparsely(|| Vision::load_with(&self.target, &file, fine, self.plan.encoders_streamed))?;
        self.vision_ahead.get_or_init(|| if self.plan.encoders_streamed { None } else { Ahead::start(&file, |_| true) });
        if vision.dim() != self.params().dim {
            let what = format!(
                "its rows are {} wide, the decoder of {} takes {}",
                vision.dim(),
                self.language().path().display(),
                self.params().dim
            );
            return Err(RuntimeError::Invalid { file: file.path().to_owned(), what, remedy: "use two files that were converted together" });
        }
        if let Some(expected) = self.params().image_rows.filter(|&n| n != vision.image_rows()) {
            let what = format!("a picture becomes {} rows, the language file expects {expected}", vision.image_rows());
            return Err(RuntimeError::Invalid { file: file.path().to_owned(), what, remedy: "use two files that were converted together" });
        }
        warn_of_rest(&file);
        Ok(self.vision.get_or_init(|| vision))
    }

    /// Turns a picture into rows of the decoder; `observe` sees the stages on the way (`&mut ()` sees none).
    ///
    /// # Errors
    /// As [`vision`](Sphinx::vision), and when encoding fails.
    pub fn encode(&self, picture: &Picture, observe: &mut dyn Observe) -> Result<ImageRows> {
        self.vision()?.encode(&self.target, picture, observe)
    }

    /// Turns pictures into rows of the decoder, in their order, each with its tags; `None` for no picture. The released
    /// models were given one.
    ///
    /// # Errors
    /// As [`encode`](Sphinx::encode).
    pub fn encode_all(&self, pictures: &[Picture]) -> Result<Option<ImageRows>> {
        let images = pictures.iter().map(|p| self.encode(p, &mut ())).collect::<Result<Vec<_>>>()?;
        Ok((!images.is_empty()).then(|| ImageRows::join(&images)))
    }

    /// Whether a prompt of `tokens` tokens (the first one counted), pictures of so many rows each
    /// ([`Vision::rows_of`]) and `new_tokens` tokens of a reply fit a session: to know before pictures are encoded.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] stating the sum and how many pictures of that kind do fit.
    pub fn check_fit(&self, tokens: usize, pictures: &[usize], new_tokens: usize) -> Result<()> {
        Budget { capacity: self.context, tokens, pictures, new: new_tokens }.kept(false).map(|_| ())
    }

    /// A new conversation.
    ///
    /// # Errors
    /// When memory for its cache does not suffice.
    pub fn session(&self) -> Result<Session<'_, T>> {
        Session::new(self, self.context, self.plan.chunk, self.kv)
    }

    /// Asks one question, about any number of pictures, in the model's own template.
    ///
    /// # Errors
    /// As [`encode`](Sphinx::encode) and [`Session::generate`].
    pub fn ask(&self, pictures: &[Picture], question: &str, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Reply> {
        let prompt = self.tokenizer.encode_with_bos(&self.params().template.question(None, question));
        let request = Request { stop: &self.params().stop, ..Request::default() };
        if !pictures.is_empty() {
            let vision = self.vision()?;
            let rows: Vec<usize> = pictures.iter().map(|p| vision.rows_of(p.width(), p.height())).collect();
            self.check_fit(prompt.len(), &rows, request.max_tokens)?;
        }
        let image = self.encode_all(pictures)?;
        self.session()?.generate(&prompt, image.as_ref(), &request, on_text)
    }
}

/// Bytes behind the last tensor do no harm, but a model that has them is not what was converted.
fn warn_of_rest(file: &Gguf) {
    if file.trailing_bytes() > 0 {
        let name = printable(&file.path().to_string_lossy());
        tracing::warn!("{name}: {} bytes follow the last tensor", file.trailing_bytes());
    }
}
