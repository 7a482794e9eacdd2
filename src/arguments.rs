//! The command line: names, defaults, help texts with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::device::Device;

/// Converts SPHINX-X checkpoints to 4/8-bit GGUF files and runs them: a picture and a question in, text out.
#[derive(Debug, Parser)]
#[command(name = "sphinx", version, max_term_width = 110, propagate_version = true)]
#[command(after_help = "First steps:
  sphinx demo                                    converts a built-in toy model and asks it; needs no file
  sphinx convert SPHINX-Tiny-1k/ -o tiny.gguf    a checkpoint directory becomes two GGUF files
  sphinx run tiny.gguf --image photo.jpg -p \"What's in the image?\"")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Say more on standard error; twice for still more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// No progress bars.
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// An error as one JSON object on standard error.
    #[arg(long, global = true)]
    pub json_errors: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a PyTorch checkpoint directory into two GGUF files.
    Convert(ConvertArgs),
    /// Turn a GGUF file of either half into another precision.
    Quantize(QuantizeArgs),
    /// Measure which columns of every matrix matter, from text and pictures, for convert and quantize.
    Imatrix(ImatrixArgs),
    /// Show what a GGUF file, a checkpoint directory, or a .pth / .safetensors file holds.
    Inspect(InspectArgs),
    /// Check structure, checksums and numbers of a GGUF file, against its checkpoint if wanted.
    Verify(VerifyArgs),
    /// Ask one question, about a picture if one is given.
    Run(RunArgs),
    /// Hold a conversation: /image FILE, /clear, /stats, /save FILE, /quit.
    Chat(ChatArgs),
    /// Text to token ids, or ids to text.
    Tokenize(TokenizeArgs),
    /// Write the rows a picture becomes, and each stage on the way.
    Embed(EmbedArgs),
    /// Write the logits of a prompt.
    Logits(LogitsArgs),
    /// Measure load, encoding, prefill and decoding.
    Bench(BenchArgs),
    /// What a model needs of memory, part by part, and how it would be held within a budget.
    Fit(FitArgs),
    /// Write a random model of nano or true size, as a checkpoint directory or as GGUF.
    Synth(SynthArgs),
    /// Score a model, or every precision of a checkpoint, on questions with known answers.
    Eval(EvalArgs),
    /// Convert the built-in toy model and ask it about pictures: needs no file and no network.
    Demo(DemoArgs),
    /// What this machine is, which kernels were chosen, how fast memory and disk are, what fits.
    Doctor(DoctorArgs),
    /// Completions for a shell, on standard output.
    Completions(CompletionsArgs),
}

/// A size in bytes: `2GiB`, `2G`, `512M`, `65536`; the letters are powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        other => return Err(format!("unknown unit {other:?}; use K, M, G or KiB, MiB, GiB")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{digits:?} is no number; an example is 2GiB"))?;
    let bytes = number * unit as f64;
    if !(0.0..1e18).contains(&bytes) {
        return Err("the size must lie between 0 and 10^18 bytes".into());
    }
    Ok(bytes as u64)
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

fn skew(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (0.0..=4.0).contains(&x) => Ok(x),
        _ => Err("not a number from 0 to 4".into()),
    }
}

fn error_bound(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("not a number from 0 on".into()),
    }
}

/// Far more than any machine of today runs at once; every thread takes memory.
const MOST_THREADS: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    positive(text).and_then(|n| if n <= MOST_THREADS { Ok(n) } else { Err(format!("must be at most {MOST_THREADS}")) })
}

/// What every command that loads a model takes.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// The language half, NAME.gguf; mmproj-NAME.gguf is looked for beside it.
    pub model: PathBuf,
    /// The vision half, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// What computes: cpu (our kernels), candle-cpu (to check results with), cuda or cuda:N, metal. `sphinx doctor` says which
    /// of them this program can use here.
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    /// Threads; default: the cores this process may use.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// Positions to keep room for; default: the model's.
    #[arg(long, value_parser = positive)]
    pub context: Option<usize>,
    /// Precision of the key/value cache; default f16, or f32 when the language weights are F32.
    #[arg(long, value_enum)]
    pub kv: Option<KvArg>,
    /// Positions that go through the decoder together in prefill; default: 512, and 4096 for a mixture of experts.
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    pub chunk: Option<usize>,
    /// A budget for everything: weights, encoders, cache, buffers. What does not fit is read from disk when it is needed; what
    /// cannot work is refused. Default: what the machine has free. `bench` takes several, separated by commas.
    #[arg(long, value_name = "SIZE", value_parser = size, value_delimiter = ',')]
    pub memory: Vec<u64>,
    /// Bytes of a mixture's experts to keep in memory, or on the device that weights are copied to; default: what the budget, or the
    /// device, leaves.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub expert_cache: Option<u64>,
    /// Which expert gives way when another needs its memory.
    #[arg(long, value_enum, value_name = "POLICY", default_value = "foresight")]
    pub expert_policy: PolicyArg,
    /// Compare checksums of a mixture's experts at every read, not at the first alone.
    #[arg(long)]
    pub verify_reads: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyArg {
    /// The one used longest ago.
    Lru,
    /// The one used least often.
    Lfu,
    /// The one whose next use is furthest away, as far as one can tell.
    Foresight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// What the model is to look at.
#[derive(Clone, Debug, Default, Args)]
pub struct PictureArgs {
    /// A picture: PNG, JPEG, WebP, GIF (first frame) or BMP. May be given more than once.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// Frames of a film: a folder of pictures, an animated GIF or an animated WebP.
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "image")]
    pub video: Option<PathBuf>,
    /// How many frames, evenly spaced; default: as many as fit, at most 8.
    #[arg(long, value_name = "N", requires = "video", value_parser = positive)]
    pub frames: Option<usize>,
}

/// How a reply is drawn.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.1)]
    pub temperature: f32,
    /// Draw from the likeliest tokens that hold this much of the probability.
    #[arg(long, default_value_t = 0.5)]
    pub top_p: f32,
    /// Longest reply, in tokens.
    #[arg(long, default_value_t = 512)]
    pub max_tokens: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A text that ends the reply; may be given more than once, and replaces the template's own.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Replaces the system text of the template.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Send the text as it is, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// Cut an over-long prompt at its beginning instead of refusing it.
    #[arg(long)]
    pub truncate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchArg {
    /// Any model of the family.
    Llama,
    /// InternLM2's own name, for dense models.
    Internlm2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RopeOrderArg {
    /// Channels 2i and 2i + 1 turn together, as Meta stores them.
    Pairs,
    /// Channels i and i + half turn together, as Hugging Face stores them.
    Halves,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClipActivation {
    Gelu,
    QuickGelu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PadAnchorArg {
    Centre,
    #[value(name = "top_left")]
    TopLeft,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx convert SPHINX-Tiny-1k/ -o tiny.gguf
  sphinx convert SPHINX-Tiny-1k/ -o tiny-f16.gguf --quant F16 --vision-quant F16
  sphinx convert SPHINX-Tiny-1k/ -o tiny.gguf --dry-run
  sphinx convert SPHINX-MoE/ -o moe.gguf --clip-activation quick-gelu
  sphinx convert internlm2-chat-7b/ --vision visual.pth --llama-type internlm2_ens5_light -o intern2.gguf
  sphinx convert SPHINX-Tiny-1k/ -o nine.gguf --layout nine.toml      image_size = 1536, grid = 3
  sphinx convert trained-with-skip-tokens/ -o skip.gguf --pad-anchor top_left

Writes tiny.gguf (the language model, which stock llama.cpp loads) and mmproj-tiny.gguf (the encoders).")]
pub struct ConvertArgs {
    /// Checkpoint directories; tensors of a later one replace those of an earlier one.
    #[arg(required = true, value_name = "CHECKPOINT_DIR")]
    pub inputs: Vec<PathBuf>,
    /// The language half to write; the vision half is written beside it as mmproj-NAME.gguf.
    #[arg(short, long, value_name = "NAME.gguf")]
    pub output: PathBuf,
    /// Precision of the language model: F32, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_0.
    #[arg(long, default_value = "Q4_K_M")]
    pub quant: String,
    /// Precision of the encoders: the same names.
    #[arg(long, default_value = "Q8_0")]
    pub vision_quant: String,
    /// Your own mix of precisions (TOML), instead of --quant and --vision-quant.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quant", "vision_quant"])]
    pub recipe: Option<PathBuf>,
    /// The variant, when meta.json is missing or wrong.
    #[arg(long, value_name = "TYPE")]
    pub llama_type: Option<String>,
    /// Where the visual half is, when the first checkpoint holds a language model alone: a directory or a file in the public
    /// layout. Needs --llama-type.
    #[arg(long, value_name = "DIR|FILE")]
    pub vision: Option<PathBuf>,
    /// The architecture that stock tools are told; what they compute is the same.
    #[arg(long, value_enum, default_value = "llama")]
    pub arch: ArchArg,
    /// How rotary channels of queries and keys lie in the checkpoint: neighbours, or half a head apart. Default: halves for
    /// fused wqkv and Hugging Face directories, pairs otherwise.
    #[arg(long, value_enum, value_name = "ORDER")]
    pub rope_order: Option<RopeOrderArg>,
    /// The activation in CLIP's MLP: gelu is what the public inference code computes, quick-gelu what the weights were trained with.
    #[arg(long, value_enum, default_value = "gelu")]
    pub clip_activation: ClipActivation,
    /// The tensor whose rows stand for empty sub-images; default: llma.skip_token, or the only unknown tensor that fits.
    #[arg(long, value_name = "NAME")]
    pub skip_tensor: Option<String>,
    /// Where pictures lay in their padding in training. A checkpoint with skip rows needs it, for its weights do not show it.
    #[arg(long, value_enum, value_name = "ANCHOR")]
    pub pad_anchor: Option<PadAnchorArg>,
    /// Another way to cut pictures up (TOML: image_size, grid, vit_input, encoders, …); what it does not name stays.
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// An importance matrix of this model: which columns matter to the quantiser.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Context length to record; default 4096.
    #[arg(long, value_name = "N")]
    pub context: Option<u32>,
    /// Memory that the conversion may use.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// Threads that quantise; default: the cores this process may use. The result does not depend on it.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// Show what would be written and how large it gets; reads no tensor and writes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How a mixture's experts lie in the file.
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "stacked")]
    pub expert_layout: LayoutArg,
    /// Replace files that exist.
    #[arg(long)]
    pub force: bool,
    /// Unknown tensors and differing replicas are errors.
    #[arg(long)]
    pub strict: bool,
    /// The report as JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

/// How a mixture's experts lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutArg {
    /// As stock tools have them: the experts of a layer in three tensors.
    Stacked,
    /// Gate, up and down of an expert side by side, read in one piece; for this runtime alone.
    Contiguous,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx quantize tiny-f16.gguf -o tiny-q4.gguf --quant Q4_K_M
  sphinx quantize mmproj-tiny-f16.gguf -o mmproj-tiny-q4.gguf --quant Q8_0
  sphinx quantize tiny-q4.gguf -o tiny-q4-as-f32.gguf --quant F32     the de-quantised weights
  sphinx quantize moe-f16.gguf -o moe-q4.gguf --quant Q4_K_M --imatrix moe.imatrix.gguf
  sphinx quantize moe-f16.gguf -o moe-mine.gguf --recipe mine.toml    see below

A recipe file:
  base = \"Q4_K_M\"                        one of the names of --quant
  vision_base = \"Q8_0\"                   optional: that of the vision half
  [[rule]]                               the first that fits a matrix decides
  pattern = \"blk.*.ffn_down*.weight\"     a glob over tensor names (or tower = \"dinov2\", or both)
  layers = \"0-7,31\"                      optional
  experts = \"0-3\"                        optional: only these of a stack, which only this runtime reads then
  type = \"Q6_K\"                          a block format")]
pub struct QuantizeArgs {
    /// A GGUF file of either half.
    pub input: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.gguf")]
    pub output: PathBuf,
    /// F32, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q4_0.
    #[arg(long, required_unless_present = "recipe", conflicts_with = "recipe")]
    pub quant: Option<String>,
    /// Your own mix of precisions (TOML): by name, tower, layer or expert.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// What `sphinx imatrix` or llama.cpp's llama-imatrix measured: which columns matter.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Memory that the work may use.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// Threads; default: the cores this process may use.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// How a mixture's experts lie in the file.
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "stacked")]
    pub expert_layout: LayoutArg,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
    /// The report as JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx imatrix tiny-f16.gguf --data calibration.jsonl -o tiny.imatrix.gguf
  sphinx quantize tiny-f16.gguf -o tiny-q4.gguf --quant Q4_K_M --imatrix tiny.imatrix.gguf

A line of the data is {\"question\": …, \"image\": …, \"answer\": …} or {\"text\": …}; a picture is a path beside the file or a data URI.
The file is in llama.cpp's GGUF layout for importance matrices and serves its tools for the language model, too.")]
pub struct ImatrixArgs {
    /// The language half, best F16 or Q8_0; the vision half beside it is measured with the pictures.
    pub model: PathBuf,
    /// The vision half, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// Questions, texts and pictures, one JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Rows of the data to use; default: all.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub rows: Option<usize>,
    /// Positions of a piece of text; longer texts are cut. Default: the model's context.
    #[arg(long, value_parser = positive)]
    pub context: Option<usize>,
    /// Threads; default: the cores this process may use.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx inspect tiny.gguf
  sphinx inspect SPHINX-Tiny-1k/ --tensors
  sphinx inspect tiny.gguf --with gguf-rs     the same file through an independent reader")]
pub struct InspectArgs {
    /// A GGUF file, a checkpoint directory, a .pth or a .safetensors file.
    pub path: PathBuf,
    /// List the tensors too.
    #[arg(long)]
    pub tensors: bool,
    /// Positions to price the memory for; default: the model's.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Which reader looks at a GGUF file.
    #[arg(long, value_enum, default_value = "own")]
    pub with: Reader,
    /// As JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// This project's reader.
    Own,
    /// The gguf-rs crate: a second opinion.
    GgufRs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx verify tiny.gguf
  sphinx verify tiny.gguf --against SPHINX-Tiny-1k/                     error of every tensor
  sphinx verify mmproj-tiny.gguf --against SPHINX-Tiny-1k/ --json       the same as JSON
  sphinx verify tiny.gguf --against SPHINX-Tiny-1k/ --max-rmse 0.002    exit code 6 when a tensor is worse

With --against every tensor of the file must have its original, and every tensor of the checkpoint is accounted for. Either half
is verified by itself; options below that read as for convert say how to read the checkpoint where it does not say so itself.")]
pub struct VerifyArgs {
    /// A GGUF file.
    pub path: PathBuf,
    /// The checkpoint it was made from: measures what quantisation cost, tensor by tensor. More than once as for convert.
    #[arg(long, value_name = "CHECKPOINT_DIR")]
    pub against: Vec<PathBuf>,
    /// The largest root mean squared error that a tensor may have.
    #[arg(long, value_name = "X", requires = "against", value_parser = error_bound)]
    pub max_rmse: Option<f64>,
    /// The variant, as for convert; default: what the file says.
    #[arg(long, value_name = "TYPE", requires = "against")]
    pub llama_type: Option<String>,
    /// Where the checkpoint's visual half is, as for convert.
    #[arg(long, value_name = "DIR|FILE", requires = "against")]
    pub vision: Option<PathBuf>,
    /// How rotary channels lie in the checkpoint, as for convert.
    #[arg(long, value_enum, value_name = "ORDER", requires = "against")]
    pub rope_order: Option<RopeOrderArg>,
    /// The tensor with skip rows, as for convert.
    #[arg(long, value_name = "NAME", requires = "against")]
    pub skip_tensor: Option<String>,
    /// Where pictures lie in their padding, as for convert; no tensor depends on it.
    #[arg(long, value_enum, value_name = "ANCHOR", requires = "against")]
    pub pad_anchor: Option<PadAnchorArg>,
    /// Another way to cut pictures up, as for convert.
    #[arg(long, value_name = "FILE", requires = "against")]
    pub layout: Option<PathBuf>,
    /// Memory that the comparison may use.
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "against")]
    pub max_memory: Option<u64>,
    /// Threads of the comparison; default: the cores this process may use.
    #[arg(long, value_parser = threads, requires = "against")]
    pub threads: Option<usize>,
    /// Bytes after the last tensor and unknown tensors of the checkpoint are errors, not warnings.
    #[arg(long)]
    pub strict: bool,
    /// As JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx run tiny.gguf --image photo.jpg -p \"What's in the image?\"
  sphinx run tiny.gguf -p \"Name three rivers.\" --temperature 0
  sphinx run tiny.gguf --image photo.jpg -p \"Describe it.\" -v      with the table of stages
  sphinx run tiny.gguf --image a.jpg --image b.jpg -p \"What differs?\"
  sphinx run tiny.gguf --video frames/ --frames 3 -p \"What happens?\"

Several pictures are an addition of this program: the models were trained on one.")]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub pictures: PictureArgs,
    /// The question.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: String,
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// The answer, its ids, timings and memory as one JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture to talk about.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub generate: GenerateArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx tokenize tiny.gguf \"What's in the image?\" --bos
  sphinx tokenize tiny.gguf --decode 1,1724,29915")]
pub struct TokenizeArgs {
    /// A language GGUF file.
    pub model: PathBuf,
    /// The text; with --decode ids separated by commas. Control marks in it are plain text.
    #[arg(allow_hyphen_values = true)]
    pub text: String,
    /// Put BOS in front.
    #[arg(long)]
    pub bos: bool,
    /// The other way round: ids to text.
    #[arg(long)]
    pub decode: bool,
    /// Which tokenizer works.
    #[arg(long, value_enum, default_value = "own")]
    pub with: TokenizerKind,
    /// With --decode: the text as a JSON string.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenizerKind {
    /// This project's encoder.
    Own,
    /// The tokenizers crate, built from the same pieces: a second opinion.
    Tokenizers,
}

#[derive(Debug, Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture.
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,
    /// The safetensors file to write.
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx logits tiny.gguf -p \"What's in the image?\" --image photo.png -o logits.safetensors
  sphinx logits tiny.gguf --tokens 1,1724,338 -o logits.safetensors")]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub pictures: PictureArgs,
    /// Ids, used exactly as given.
    #[arg(long, value_name = "IDS", value_delimiter = ',', required_unless_present = "prompt", conflicts_with = "prompt")]
    pub tokens: Vec<u32>,
    /// A question; the template and BOS are put around it.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// With -p: the text as it is after BOS, without the chat template.
    #[arg(long, requires = "prompt")]
    pub raw: bool,
    /// The safetensors file to write.
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx bench tiny.gguf
  sphinx bench tiny.gguf --image photo.jpg --output json
  sphinx bench tiny.gguf --cold --repeat 3
  sphinx bench moe.gguf --memory 8G                                   enforced by the system where it can be
  sphinx bench moe.gguf --memory 8G,12G,16G --plot curve.svg          a curve over budgets
  sphinx bench moe.gguf --target pi-5-8                               as much memory as a Raspberry Pi 5 has")]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Random prompt ids.
    #[arg(long, default_value = "512", value_parser = positive)]
    pub prompt_tokens: usize,
    /// Tokens decoded after the prompt.
    #[arg(long, default_value = "64", value_parser = positive)]
    pub gen_tokens: usize,
    /// A picture to encode and put in front.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Repetitions; every figure is their median.
    #[arg(long, default_value = "5", value_parser = positive)]
    pub repeat: usize,
    /// Drop the model from the page cache first, and do not warm up.
    #[arg(long)]
    pub cold: bool,
    /// How the figures are written.
    #[arg(long, value_enum, default_value = "md")]
    pub output: Format,
    /// The memory and threads of a device instead of --memory and --threads; its processor and disk are not imitated.
    #[arg(long, value_name = "PROFILE", conflicts_with_all = ["memory", "threads"])]
    pub target: Option<String>,
    /// Write what a mixture asked of its experts, a JSON object a line, for a replay.
    #[arg(long, value_name = "FILE.jsonl")]
    pub trace: Option<PathBuf>,
    /// Draw tokens per second over several budgets.
    #[arg(long, value_name = "FILE.svg", requires = "memory")]
    pub plot: Option<PathBuf>,
    /// The control group that the process enters: what `bench --memory` hands to the one that measures.
    #[arg(long, hide = true)]
    pub group: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx fit moe.gguf --memory 8G
  sphinx fit tiny.gguf --target pi-5-8 --images 2
  sphinx fit SPHINX-MoE/ --memory 12G                a checkpoint, as convert would make it")]
pub struct FitArgs {
    /// A language GGUF file, or a checkpoint directory.
    #[arg(value_name = "MODEL|CHECKPOINT_DIR")]
    pub model: PathBuf,
    /// The vision half, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub mmproj: Option<PathBuf>,
    /// The budget; default: what this machine has free.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// The budget of a device.
    #[arg(long, value_name = "PROFILE", conflicts_with = "memory")]
    pub target: Option<String>,
    /// Positions to keep room for; default: the model's.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Pictures of a prompt; 0 leaves the encoders out.
    #[arg(long, value_name = "N", default_value = "1")]
    pub images: usize,
    /// Precision of the key/value cache; default f16, or f32 when the language weights are F32.
    #[arg(long, value_enum)]
    pub kv: Option<KvArg>,
    /// Positions that go through the decoder together.
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    pub chunk: Option<usize>,
    /// Precision that a checkpoint is converted to.
    #[arg(long, default_value = "Q4_K_M")]
    pub quant: String,
    /// The same for its encoders.
    #[arg(long, default_value = "Q8_0")]
    pub vision_quant: String,
    /// As JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Md,
    Json,
    Csv,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx synth --family tiny --scale nano -o nano/                       a checkpoint directory
  sphinx synth --family tiny --scale full -o tiny.gguf --quant Q4_K_M    1.1 G random weights, at disk speed
  sphinx synth --family moe --scale nano --shards 2 -o moe/              a mixture in two model-parallel shards
  sphinx synth --family plus --scale nano --llama-type llama_ens10 -o first/
  sphinx synth --family moe --scale full --layers 2 --no-vision --shards 8 -o two-layers/
  sphinx synth --family tiny --scale nano --skip-tokens 1 -o skip/       convert it with --pad-anchor

Families: tiny is TinyLlama-1.1B, intern2 InternLM2-7B, plus LLaMA2-13B, moe Mixtral-8x7B; nano has the same structure in a few
megabytes. Their variants: llama_ens5_light, internlm2_ens5_light, llama_ens5_light, mixtral_sparse_ens5; --llama-type takes any
other, one with experts for moe and one without for the rest. A directory is bfloat16.")]
pub struct SynthArgs {
    /// Which member of the family: tiny, intern2, plus or moe.
    #[arg(long)]
    pub family: String,
    /// nano, or full, the true size.
    #[arg(long)]
    pub scale: String,
    /// With a GGUF output: precision of the language model; default Q4_K_M.
    #[arg(long, conflicts_with = "recipe")]
    pub quant: Option<String>,
    /// With a GGUF output: precision of the encoders; default Q8_0.
    #[arg(long, conflicts_with = "recipe")]
    pub vision_quant: Option<String>,
    /// With a GGUF output: your own mix of precisions for both halves (TOML).
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// The language half only.
    #[arg(long)]
    pub no_vision: bool,
    /// The variant; default: the family's.
    #[arg(long, value_name = "TYPE")]
    pub llama_type: Option<String>,
    /// Decoder layers, when not all are wanted.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub layers: Option<usize>,
    /// Another way to cut pictures up (TOML); what it does not name stays as the variant has it.
    #[arg(long, value_name = "FILE")]
    pub layout: Option<PathBuf>,
    /// Rows that stand for an empty sub-image; without it empty ones are encoded like any.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub skip_tokens: Option<usize>,
    /// With a GGUF output: where pictures lie in their padding. A checkpoint does not say it; give it to convert then.
    #[arg(long, value_enum, value_name = "ANCHOR")]
    pub pad_anchor: Option<PadAnchorArg>,
    /// With a directory: model-parallel shards.
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    pub shards: usize,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A directory, or NAME.gguf.
    #[arg(short, long, value_name = "DIR|NAME.gguf")]
    pub output: PathBuf,
    /// Threads; the result does not depend on it.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// How uneven a mixture's routers are: scores of the expert of rank r are smaller by (r + 1)^-SKEW. For GGUF files.
    #[arg(long, value_name = "SKEW", default_value = "0", value_parser = skew)]
    pub router_skew: f32,
    /// How a mixture's experts lie in the file.
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "stacked")]
    pub expert_layout: LayoutArg,
    /// Replace files that exist.
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetArg {
    /// JSON lines with question, image, answer, and choices where there are any.
    Jsonl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScoringArg {
    /// The same text.
    Exact,
    /// The letter of a choice, or its text.
    Choice,
    /// Yes or no.
    YesNo,
    /// A number, give or take --epsilon.
    Number,
    /// No reply: which choice the model finds likeliest per token.
    Likelihood,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx eval tiny.gguf --dataset jsonl questions.jsonl
  sphinx eval tiny-q4.gguf --dataset jsonl questions.jsonl --against tiny-f16.gguf       and how far it is from another
  sphinx eval SPHINX-Tiny/ --dataset jsonl questions.jsonl --quant F16,Q4_K_M --vision-quant F16,Q8_0
                                     what quantising costs: every pair of precisions, each against F16
  sphinx eval nano/dense --dataset jsonl nano/test.jsonl                                 the toy model that sphinx demo asks

A line of the data: {\"id\": 7, \"image\": \"a.png\", \"question\": \"Where is it?\", \"answer\": \"left\", \"category\": \"where\"};
choices is a list of answers to choose from. Replies are greedy. A reply that cannot be read is wrong, and counted as unread.")]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The questions.
    #[arg(value_name = "PATH")]
    pub data: PathBuf,
    /// What kind of data set it is.
    #[arg(long, value_enum)]
    pub dataset: DatasetArg,
    /// With a checkpoint directory: precisions of the language model to try; default F16.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',')]
    pub quant: Vec<String>,
    /// With a checkpoint directory: precisions of the encoders to try; default F16.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',')]
    pub vision_quant: Vec<String>,
    /// Another model of the same vocabulary, to say how far this one's answers are from its: KL divergence and top-1 agreement
    /// over the tokens of the right answer, with the picture in context. A checkpoint's precisions are held against its F16.
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
    /// What makes a reply right; default: choice where a row has choices, exact otherwise.
    #[arg(long, value_enum)]
    pub scoring: Option<ScoringArg>,
    /// How far a number may be off.
    #[arg(long, value_name = "X", default_value = "0", value_parser = error_bound)]
    pub epsilon: f64,
    /// Longest reply, in tokens.
    #[arg(long, value_name = "N", default_value = "64", value_parser = positive)]
    pub max_tokens: usize,
    /// The first N questions only.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<usize>,
    /// Fields of the rows to tell results by.
    #[arg(long, value_name = "FIELD,FIELD,…", value_delimiter = ',', default_value = "category,language")]
    pub by: Vec<String>,
    /// Write one record per answer to this file (JSON lines).
    #[arg(short, long, value_name = "FILE.jsonl")]
    pub output: Option<PathBuf>,
    /// Go on where an interrupted run with the same --output stopped.
    #[arg(long, requires = "output")]
    pub resume: bool,
    /// Where a checkpoint's conversions lie for as long as it takes; default: the system's temporary folder.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
    /// Tables in Markdown.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Results as JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sphinx demo
  sphinx demo --image drawing.png -p \"What shape is red?\"      a few filled shapes on a plain ground, drawn by you
  sphinx demo --json                                           questions, answers and what would have been right")]
pub struct DemoArgs {
    /// A picture of your own instead of the built-in ones.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// A question of your own; about the first built-in picture if no other is given.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What happened, as JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A directory on the disk to measure.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub disk: PathBuf,
    /// As JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh.
    pub shell: Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("2K"), Ok(2048));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert!(size("2 GB").is_err() && size("GiB").is_err() && size("-1").is_err());
    }
}
