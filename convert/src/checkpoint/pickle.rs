//! A pickle reader that can only make data.
//!
//! A `.pth` file describes its tensors with a pickle, a little program for a stack machine. Python's machine can import and
//! call anything; this one knows dictionaries, lists, tuples, numbers, text, and three torch functions that it records
//! instead of calling. Every other name or instruction is an error, so reading a hostile file is as safe as reading text.
//!
//! Values live in flat tables ([`Pickle`]) and refer to each other by index: a million nested lists are a million table
//! rows, and nothing here recurses on what the file says. Everything made is charged against a budget tied to
//! the stream's length.
//!
//! Source: CPython's `pickletools.py` for the opcodes, `torch/serialization.py` and `torch/_utils.py` for what torch writes.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::HashMap;

use sphinx_quant::error::printable;

/// The longest stream read, in bytes.
pub const MAX_STREAM_BYTES: usize = 64 << 20;
/// The most instructions carried out.
pub const MAX_OPCODES: usize = 10_000_000;
/// How deep marks may nest.
pub const MAX_MARKS: usize = 1_000;
/// How many values may wait on the stack. A writer puts 1,000 pairs there before it stores them in a dictionary,
/// so the limit on depth proper is [`MAX_MARKS`].
pub const MAX_STACK: usize = 65_536;
/// What values may take: this, and three times the stream, in bytes.
const BUDGET_BYTES: usize = 64 << 20;

const MALICIOUS: &str = "the file may be malicious; nothing was executed";
const BROKEN: &str = "the file is damaged or was not written by torch.save; get it again, or re-save it with torch.save";

/// Why a stream was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the stream, in bytes.
    pub offset: usize,
    /// What is wrong; printable.
    pub what: String,
    /// What the user can do.
    pub remedy: &'static str,
}

/// Index into one of [`Pickle`]'s tables.
pub type Id = u32;

/// A value. Text borrows from the stream; containers are rows of [`Pickle`]'s tables, shared by index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// One of the allowed names.
    Global(Global),
    /// Row of [`Pickle::tuples`].
    Tuple(Id),
    /// Row of [`Pickle::lists`].
    List(Id),
    /// Row of [`Pickle::dicts`].
    Dict(Id),
    /// Row of [`Pickle::storages`].
    Storage(Id),
    /// Row of [`Pickle::tensors`].
    Tensor(Id),
}

/// The names a stream may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, which states the element type beside an untyped storage
    RebuildTyped,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.Size`
    Size,
    /// `torch.FloatStorage` and its sisters, or `torch.float32` and its sisters
    Element(Element),
    /// A storage class that does not say what it holds
    Untyped,
}

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    F16,
    BF16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    U16,
    U32,
    U64,
    Bool,
    F8,
    Complex64,
    Complex128,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Element::I8 | Element::U8 | Element::Bool | Element::F8 => 1,
            Element::F16 | Element::BF16 | Element::I16 | Element::U16 => 2,
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::F64 | Element::I64 | Element::U64 | Element::Complex64 => 8,
            Element::Complex128 => 16,
        }
    }
}

/// A storage, as its persistent id tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageRef<'a> {
    /// Element type; none for an untyped storage, whose elements are bytes.
    pub element: Option<Element>,
    /// Name of the entry under `data/`.
    pub key: &'a str,
    /// Elements (bytes, if untyped).
    pub elements: i64,
}

/// A tensor, as the arguments of its rebuilding tell it. Nothing has been compared with the storage yet.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRef {
    /// Row of [`Pickle::storages`].
    pub storage: Id,
    /// Stated element type, of an untyped storage.
    pub element: Option<Element>,
    /// First element.
    pub offset: i64,
    /// Sizes, outermost first.
    pub shape: Vec<i64>,
    /// Strides in elements.
    pub stride: Vec<i64>,
}

/// Everything a stream made.
#[derive(Debug)]
pub struct Pickle<'a> {
    /// What was on the stack at the end.
    pub root: Value<'a>,
    /// Tuples.
    pub tuples: Vec<Box<[Value<'a>]>>,
    /// Lists.
    pub lists: Vec<Vec<Value<'a>>>,
    /// Dictionaries, plain and ordered, as pairs in the order stored; a key may come twice.
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    /// Storages.
    pub storages: Vec<StorageRef<'a>>,
    /// Tensors.
    pub tensors: Vec<TensorRef>,
}

impl<'a> Pickle<'a> {
    /// The pairs of a dictionary; none for any other value.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::Dict(id) => self.dicts.get(id as usize).map(Vec::as_slice),
            _ => None,
        }
    }
}

/// Reads a stream of protocol 2 to 5.
///
/// # Errors
/// A [`Fault`] for every instruction, name or number that is not on the short list above, and when a limit is passed.
pub fn unpickle(stream: &[u8]) -> Result<Pickle<'_>, Fault> {
    let mut machine = Machine {
        stream,
        at: 0,
        op_at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        left: BUDGET_BYTES.saturating_add(stream.len().saturating_mul(3)),
        made: Pickle {
            root: Value::None,
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        },
    };
    let root = machine.run()?;
    Ok(Pickle { root, ..machine.made })
}

struct Machine<'a> {
    stream: &'a [u8],
    at: usize,
    op_at: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    left: usize,
    made: Pickle<'a>,
}

type Step<T> = Result<T, Fault>;

impl<'a> Machine<'a> {
    fn fault<T>(&self, what: impl Into<String>, remedy: &'static str) -> Step<T> {
        Err(Fault { offset: self.op_at, what: what.into(), remedy })
    }

    fn broken<T>(&self, what: impl Into<String>) -> Step<T> {
        self.fault(what, BROKEN)
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.stream.get(self.at..end)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => self.broken(format!("its pickle ends inside an instruction that needs {count} bytes more")),
        }
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn text(&mut self, bytes: u64) -> Step<Value<'a>> {
        let Ok(bytes) = usize::try_from(bytes) else { return self.broken(format!("its pickle declares text of {bytes} bytes")) };
        let raw = self.take(bytes)?;
        match std::str::from_utf8(raw) {
            Ok(text) => Ok(Value::Str(text)),
            Err(_) => self.broken("its pickle holds text that is not UTF-8"),
        }
    }

    /// Up to the next line feed, which is skipped.
    fn line(&mut self) -> Step<&'a str> {
        let rest = self.stream.get(self.at..).unwrap_or_default();
        // A module or class name; longer ones are not looked for, so that a stream of such instructions stays linear.
        let Some(length) = rest.iter().take(1024).position(|&b| b == b'\n') else {
            return self.broken("its pickle holds a name without an end");
        };
        let raw = self.take(length)?;
        self.at += 1;
        match std::str::from_utf8(raw) {
            Ok(text) => Ok(text),
            Err(_) => self.broken("its pickle holds a name that is not UTF-8"),
        }
    }

    fn charge(&mut self, bytes: usize) -> Step<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => self.fault("its pickle makes far more objects than a checkpoint needs", MALICIOUS),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Step<()> {
        if self.stack.len() >= MAX_STACK {
            return self.fault(format!("its pickle stacks more than {MAX_STACK} values"), MALICIOUS);
        }
        self.stack.push(value);
        Ok(())
    }

    /// Values above the last mark (all, if there is none).
    fn height(&self) -> usize {
        self.stack.len().saturating_sub(self.marks.last().copied().unwrap_or(0))
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        if self.height() == 0 {
            return self.broken("its pickle takes a value from an empty stack");
        }
        match self.stack.pop() {
            Some(value) => Ok(value),
            None => self.broken("its pickle takes a value from an empty stack"),
        }
    }

    fn top(&mut self) -> Step<Value<'a>> {
        let value = self.pop()?;
        self.stack.push(value);
        Ok(value)
    }

    /// Takes everything above the last mark, and the mark.
    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => self.broken("its pickle closes a mark that was never set"),
        }
    }

    fn id(&self, length: usize) -> Step<Id> {
        match Id::try_from(length) {
            Ok(id) => Ok(id),
            Err(_) => self.fault("its pickle makes too many objects", MALICIOUS),
        }
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        self.charge(16 + size_of_val(items.as_slice()))?;
        let id = self.id(self.made.tuples.len())?;
        self.made.tuples.push(items.into_boxed_slice());
        self.push(Value::Tuple(id))
    }

    fn small_tuple(&mut self, count: usize) -> Step<()> {
        if self.height() < count {
            return self.broken("its pickle takes a value from an empty stack");
        }
        let items = self.stack.split_off(self.stack.len().saturating_sub(count));
        self.tuple(items)
    }

    fn list(&mut self) -> Step<()> {
        self.charge(size_of::<Vec<Value>>())?;
        let id = self.id(self.made.lists.len())?;
        self.made.lists.push(Vec::new());
        self.push(Value::List(id))
    }

    fn dict(&mut self) -> Step<()> {
        self.charge(size_of::<Vec<Value>>())?;
        let id = self.id(self.made.dicts.len())?;
        self.made.dicts.push(Vec::new());
        self.push(Value::Dict(id))
    }

    fn extend_list(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        // Twice: a growing vector holds up to twice its contents. At least four rows are taken at once.
        self.charge(2 * size_of::<Value>() * items.len().max(2))?;
        let Value::List(id) = self.top()? else { return self.broken("its pickle appends to something that is no list") };
        match self.made.lists.get_mut(id as usize) {
            Some(list) => list.extend(items),
            None => return self.broken("its pickle appends to something that is no list"),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        self.charge(2 * size_of::<Value>() * items.len().max(4))?;
        let Value::Dict(id) = self.top()? else { return self.broken("its pickle stores a key in something that is no dictionary") };
        if !items.len().is_multiple_of(2) {
            return self.broken("its pickle stores a key without a value");
        }
        let Some(dict) = self.made.dicts.get_mut(id as usize) else {
            return self.broken("its pickle stores a key in something that is no dictionary");
        };
        dict.extend(items.chunks_exact(2).filter_map(|pair| match pair {
            [key, value] => Some((*key, *value)),
            _ => None,
        }));
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Step<()> {
        let value = self.top()?;
        self.charge(2 * size_of::<(u32, Value)>())?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Step<()> {
        match self.memo.get(&index).copied() {
            Some(value) => self.push(value),
            None => self.broken(format!("its pickle recalls value {index}, which was never stored")),
        }
    }

    fn forbidden<T>(&self, module: &str, name: &str) -> Step<T> {
        let name = format!("{module}.{name}");
        self.fault(format!("{} is not allowed in a checkpoint", printable(&name)), MALICIOUS)
    }

    fn global(&self, module: &str, name: &str) -> Step<Value<'a>> {
        match allowed(module, name) {
            Some(global) => Ok(Value::Global(global)),
            None => self.forbidden(module, name),
        }
    }

    fn run(&mut self) -> Step<Value<'a>> {
        if self.stream.len() > MAX_STREAM_BYTES {
            return self.broken(format!("its pickle is {} bytes long, at most {MAX_STREAM_BYTES} are read", self.stream.len()));
        }
        match self.stream {
            [0x80, 2..=5, ..] => self.at = 2,
            [0x80, protocol, ..] => return self.broken(format!("its pickle has protocol {protocol}; 2 to 5 are read")),
            _ => return self.broken("its pickle does not begin with a protocol number; protocols 2 to 5 are read"),
        }
        let mut frame_end = None;
        for _ in 0..MAX_OPCODES {
            self.op_at = self.at;
            if frame_end.is_some_and(|end| self.at >= end) {
                if frame_end != Some(self.at) {
                    return self.broken("its pickle's frame ends inside an instruction");
                }
                frame_end = None;
            }
            let Some(&op) = self.stream.get(self.at) else { return self.broken("its pickle ends without STOP") };
            self.at += 1;
            match op {
                b'.' => return self.stop(),
                0x95 => {
                    let length = u64::from_le_bytes(self.array()?);
                    let end = usize::try_from(length).ok().and_then(|l| self.at.checked_add(l)).filter(|&e| e <= self.stream.len());
                    if end.is_none() || frame_end.is_some() {
                        return self.broken(format!("its pickle declares a frame of {length} bytes, which does not fit"));
                    }
                    frame_end = end;
                }
                _ => self.step(op)?,
            }
        }
        self.fault(format!("its pickle has more than {MAX_OPCODES} instructions"), MALICIOUS)
    }

    fn stop(&mut self) -> Step<Value<'a>> {
        if !self.marks.is_empty() {
            return self.broken("its pickle leaves a mark open");
        }
        let root = self.pop()?;
        if !self.stack.is_empty() {
            return self.broken("its pickle leaves values on the stack");
        }
        if self.at != self.stream.len() {
            self.op_at = self.at;
            return self.broken(format!("{} bytes follow the end of its pickle", self.stream.len() - self.at));
        }
        Ok(root)
    }

    /// One instruction other than STOP and FRAME.
    fn step(&mut self, op: u8) -> Step<()> {
        match op {
            b'(' => {
                if self.marks.len() >= MAX_MARKS {
                    return self.fault(format!("its pickle nests more than {MAX_MARKS} deep"), MALICIOUS);
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()))
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))
            }
            0x8a => {
                let length = self.byte()? as usize;
                let raw = self.take(length)?;
                if length > 8 {
                    return self.broken(format!("its pickle holds an integer of {length} bytes, more than 64 bits"));
                }
                let negative = raw.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide.iter_mut().zip(raw).for_each(|(w, &r)| *w = r);
                self.push(Value::Int(i64::from_le_bytes(wide)))
            }
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x))
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                let text = self.text(length.into())?;
                self.push(text)
            }
            0x8c => {
                let length = self.byte()?;
                let text = self.text(length.into())?;
                self.push(text)
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                let text = self.text(length)?;
                self.push(text)
            }
            b')' => self.tuple(Vec::new()),
            0x85 => self.small_tuple(1),
            0x86 => self.small_tuple(2),
            0x87 => self.small_tuple(3),
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items)
            }
            b']' => self.list(),
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(items)
            }
            b'}' => self.dict(),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(vec![key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(items)
            }
            b'q' => {
                let index = self.byte()?;
                self.remember(index.into())
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index)
            }
            0x94 => {
                let index = self.id(self.memo.len())?;
                self.remember(index)
            }
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let global = self.global(module, name)?;
                self.push(global)
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return self.fault("its pickle computes the name of something to import", MALICIOUS);
                };
                let global = self.global(module, name)?;
                self.push(global)
            }
            // Never carried out; only read far enough to say what it asked for.
            b'i' => {
                let module = self.line()?;
                let name = self.line()?;
                self.forbidden(module, name)
            }
            b'R' => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            _ => match name_of(op) {
                Some(name) => self.fault(format!("its pickle uses the instruction {name}, which torch.save never writes"), MALICIOUS),
                None => self.broken(format!("its pickle holds the byte {op:#04x}, which is no instruction")),
            },
        }
    }

    fn items(&self, value: Value<'a>) -> Step<&[Value<'a>]> {
        let items = match value {
            Value::Tuple(id) => self.made.tuples.get(id as usize).map(|t| &t[..]),
            Value::List(id) => self.made.lists.get(id as usize).map(Vec::as_slice),
            _ => None,
        };
        match items {
            Some(items) => Ok(items),
            None => self.broken("its pickle gives a single value where torch.save writes a tuple"),
        }
    }

    /// `("storage", class, entry name, location, element count)`
    fn persistent(&mut self) -> Step<()> {
        let id = self.pop()?;
        let storage = match *self.items(id)? {
            [Value::Str("storage"), Value::Global(class), Value::Str(key), Value::Str(_), Value::Int(elements)] => match class {
                Global::Element(element) => StorageRef { element: Some(element), key, elements },
                Global::Untyped => StorageRef { element: None, key, elements },
                _ => return self.broken("its pickle refers to a storage of no storage class"),
            },
            _ => return self.broken("its pickle refers to a storage in an unknown way"),
        };
        self.charge(2 * size_of::<StorageRef>())?;
        let id = self.id(self.made.storages.len())?;
        self.made.storages.push(storage);
        self.push(Value::Storage(id))
    }

    fn reduce(&mut self) -> Step<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Value::Global(function) = function else {
            return self.fault("its pickle calls something that is no function", MALICIOUS);
        };
        let Value::Tuple(_) = arguments else { return self.broken("its pickle calls a function without a tuple of arguments") };
        let arguments = self.items(arguments)?;
        match (function, arguments) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::Size, &[sizes @ Value::Tuple(_)]) => self.push(sizes),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), _, _]) => self.push(tensor),
            (Global::RebuildTensor, &[storage, offset, shape, stride, _, _] | &[storage, offset, shape, stride, _, _, _]) => {
                self.tensor(storage, offset, shape, stride, None)
            }
            (
                Global::RebuildTyped,
                &[storage, offset, shape, stride, _, _, Value::Global(Global::Element(e))]
                | &[storage, offset, shape, stride, _, _, Value::Global(Global::Element(e)), _],
            ) => self.tensor(storage, offset, shape, stride, Some(e)),
            (function, arguments) => {
                let what = format!("its pickle calls {function:?} with {} arguments that it does not take", arguments.len());
                self.broken(what)
            }
        }
    }

    fn tensor(&mut self, storage: Value<'a>, offset: Value<'a>, shape: Value<'a>, stride: Value<'a>, element: Option<Element>) -> Step<()> {
        let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
            return self.broken("its pickle rebuilds a tensor from something that is no storage");
        };
        let shape = self.integers(shape)?;
        let stride = self.integers(stride)?;
        self.charge(2 * size_of::<TensorRef>() + 8 * (shape.len() + stride.len()))?;
        let id = self.id(self.made.tensors.len())?;
        self.made.tensors.push(TensorRef { storage, element, offset, shape, stride });
        self.push(Value::Tensor(id))
    }

    fn integers(&self, value: Value<'a>) -> Step<Vec<i64>> {
        let items = self.items(value)?;
        if items.len() > 64 {
            return self.broken(format!("its pickle rebuilds a tensor of {} dimensions", items.len()));
        }
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::Int(n) => out.push(*n),
                _ => return self.broken("its pickle rebuilds a tensor whose sizes are no integers"),
            }
        }
        Ok(out)
    }

    /// The attributes of an ordered dictionary (torch keeps `_metadata` there): read and dropped.
    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let target = self.top()?;
        match (target, state) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            _ => self.fault("its pickle sets the state of an object (BUILD), which torch.save never writes for tensors", MALICIOUS),
        }
    }
}

/// The allow-list.
fn allowed(module: &str, name: &str) -> Option<Global> {
    use Element::*;
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTyped,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "Size") => Global::Size,
        ("torch" | "torch.storage", "UntypedStorage" | "_UntypedStorage" | "TypedStorage" | "_TypedStorage") => Global::Untyped,
        ("torch" | "torch.storage", "FloatStorage") | ("torch", "float32") => Global::Element(F32),
        ("torch" | "torch.storage", "HalfStorage") | ("torch", "float16") => Global::Element(F16),
        ("torch" | "torch.storage", "BFloat16Storage") | ("torch", "bfloat16") => Global::Element(BF16),
        ("torch" | "torch.storage", "DoubleStorage") | ("torch", "float64") => Global::Element(F64),
        ("torch" | "torch.storage", "LongStorage") | ("torch", "int64") => Global::Element(I64),
        ("torch" | "torch.storage", "IntStorage") | ("torch", "int32") => Global::Element(I32),
        ("torch" | "torch.storage", "ShortStorage") | ("torch", "int16") => Global::Element(I16),
        ("torch" | "torch.storage", "CharStorage") | ("torch", "int8") => Global::Element(I8),
        ("torch" | "torch.storage", "ByteStorage") | ("torch", "uint8") => Global::Element(U8),
        ("torch" | "torch.storage", "BoolStorage") | ("torch", "bool") => Global::Element(Bool),
        ("torch" | "torch.storage", "ComplexFloatStorage") | ("torch", "complex64") => Global::Element(Complex64),
        ("torch" | "torch.storage", "ComplexDoubleStorage") | ("torch", "complex128") => Global::Element(Complex128),
        ("torch", "uint16") => Global::Element(U16),
        ("torch", "uint32") => Global::Element(U32),
        ("torch", "uint64") => Global::Element(U64),
        ("torch", "float8_e4m3fn" | "float8_e5m2" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e8m0fnu") => Global::Element(F8),
        _ => return None,
    })
}

/// Names of the instructions that are refused.
fn name_of(op: u8) -> Option<&'static str> {
    Some(match op {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'd' => "DICT",
        b'g' => "GET",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x80 => "PROTO",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return None,
    })
}
