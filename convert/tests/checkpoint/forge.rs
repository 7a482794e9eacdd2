//! Makes archives and pickles byte by byte, right ones and wrong ones.

/// One entry of a forged archive. What the local header says can differ from what the directory says.
#[derive(Clone)]
pub struct Item {
    pub name: String,
    pub data: Vec<u8>,
    pub crc: u32,
    pub flags: u16,
    pub method: u16,
    pub size: u32,
    pub stored: u32,
    pub extra: Vec<u8>,
    pub disk: u16,
    pub local_name: String,
    pub local_crc: u32,
    pub local_flags: u16,
    pub local_method: u16,
    pub local_size: u32,
    pub descriptor: Vec<u8>,
    /// Where the directory says the local header is, if that is a lie.
    pub header: Option<u32>,
    /// Only listed in the directory, nothing written.
    pub ghost: bool,
}

/// An ordinary stored entry.
pub fn item(name: &str, data: &[u8]) -> Item {
    let (crc, size) = (crc32fast::hash(data), data.len() as u32);
    Item {
        name: name.into(),
        data: data.into(),
        crc,
        flags: 0,
        method: 0,
        size,
        stored: size,
        extra: vec![],
        disk: 0,
        local_name: name.into(),
        local_crc: crc,
        local_flags: 0,
        local_method: 0,
        local_size: size,
        descriptor: vec![],
        header: None,
        ghost: false,
    }
}

/// An entry with a data descriptor, as torch writes it.
pub fn described(name: &str, data: &[u8]) -> Item {
    let mut it = item(name, data);
    (it.flags, it.local_flags, it.local_crc, it.local_size) = (0x808, 0x808, 0, 0);
    it.descriptor = [&0x0807_4b50u32.to_le_bytes()[..], &it.crc.to_le_bytes(), &it.size.to_le_bytes(), &it.size.to_le_bytes()].concat();
    it
}

/// (entries, directory bytes, directory offset) → what a zip64 record says of them.
pub type End64 = fn(u64, u64, u64) -> (u64, u64, u64);

#[derive(Clone, Default)]
pub struct Archive {
    pub items: Vec<Item>,
    pub before: Vec<u8>,
    /// Added to all offsets the archive states; the honest value is `before.len()`.
    pub shift: u32,
    pub between: Vec<u8>,
    pub entries: Option<u16>,
    pub disk: u16,
    pub comment: Vec<u8>,
    pub after: Vec<u8>,
    /// Writes a zip64 end record and its locator, too.
    pub end64: Option<End64>,
    pub full32: bool,
}

impl Archive {
    pub fn of(items: Vec<Item>) -> Archive {
        Archive { items, ..Archive::default() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.before.clone();
        let mut directory = Vec::new();
        for it in &self.items {
            let at = it.header.unwrap_or(out.len() as u32 - self.before.len() as u32 + self.shift);
            if !it.ghost {
                put(&mut out, &[0x4034b50], &[20, it.local_flags, it.local_method, 0, 0]);
                put(&mut out, &[it.local_crc, it.local_size, it.local_size], &[it.local_name.len() as u16, 0]);
                out.extend(it.local_name.as_bytes());
                out.extend(&it.data);
                out.extend(&it.descriptor);
            }
            put(&mut directory, &[0x2014b50], &[20, 20, it.flags, it.method, 0, 0]);
            put(&mut directory, &[it.crc, it.stored, it.size], &[it.name.len() as u16, it.extra.len() as u16, 0, it.disk, 0]);
            put(&mut directory, &[0, at], &[]);
            directory.extend(it.name.as_bytes());
            directory.extend(&it.extra);
        }
        let start = out.len() as u32 - self.before.len() as u32 + self.shift;
        out.extend(&directory);
        out.extend(&self.between);
        let count = self.entries.unwrap_or(self.items.len() as u16);
        let size = directory.len() as u32;
        if let Some(end64) = self.end64 {
            let at = out.len() as u64;
            let (entries, bytes, offset) = end64(count.into(), size.into(), start.into());
            put(&mut out, &[0x6064b50, 44, 0], &[45, 45]);
            put(&mut out, &[0, 0], &[]);
            [entries, entries, bytes, offset].iter().for_each(|n| out.extend(n.to_le_bytes()));
            put(&mut out, &[0x7064b50, 0], &[]);
            out.extend(at.to_le_bytes());
            put(&mut out, &[1], &[]);
        }
        let (count, size, start) = if self.full32 { (u16::MAX, u32::MAX, u32::MAX) } else { (count, size, start) };
        put(&mut out, &[0x6054b50], &[self.disk, self.disk, count, count]);
        put(&mut out, &[size, start], &[self.comment.len() as u16]);
        out.extend(&self.comment);
        out.extend(&self.after);
        out
    }
}

fn put(out: &mut Vec<u8>, words: &[u32], shorts: &[u16]) {
    words.iter().for_each(|w| out.extend(w.to_le_bytes()));
    shorts.iter().for_each(|s| out.extend(s.to_le_bytes()));
}

/// A `.pth` archive around a pickle, with one storage `0` of these bytes.
pub fn pth(stream: &[u8], storage: &[u8]) -> Vec<u8> {
    Archive::of(vec![item("a/data.pkl", stream), item("a/byteorder", b"little"), item("a/data/0", storage)]).bytes()
}

pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

pub fn int(n: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &n.to_le_bytes()].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub fn ints(items: &[i64]) -> Vec<u8> {
    tuple(&items.iter().map(|&n| int(n)).collect::<Vec<_>>())
}

/// The persistent id of a storage, resolved.
pub fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
    let (module, name) = class.rsplit_once('.').unwrap();
    [tuple(&[text("storage"), global(module, name), text(key), text("cpu"), int(elements)]), b"Q".to_vec()].concat()
}

pub fn tensor(storage: Vec<u8>, offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    let hooks = [global("collections", "OrderedDict"), b")R".to_vec()].concat();
    let arguments = tuple(&[storage, int(offset), ints(shape), ints(stride), b"\x89".to_vec(), hooks]);
    [global("torch._utils", "_rebuild_tensor_v2"), arguments, b"R".to_vec()].concat()
}

/// An ordinary f32 tensor of storage 0.
pub fn plain(elements: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    tensor(storage("torch.FloatStorage", "0", elements), 0, shape, stride)
}

/// A whole stream: protocol 2 and these instructions.
pub fn stream(body: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", &body.concat()[..]].concat()
}

/// A state of one tensor called `llma.w`.
pub fn state(tensor: &[u8]) -> Vec<u8> {
    stream(&[b"}", &text("llma.w"), tensor, b"s."])
}
