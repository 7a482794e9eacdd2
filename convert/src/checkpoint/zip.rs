//! The table of contents of a zip archive as `torch.save` writes it, and nothing looser.
//!
//! Zip says everything twice, and readers that believe different halves can be shown different files. Here the end record,
//! the central directory and every local header must agree, entries are stored (not compressed, not encrypted) and do not
//! overlap, and the archive is the whole file. General readers hide most of these facts, so this one is our own; names
//! are only ever looked up, nothing is extracted.
//!
//! Source: PKWARE's APPNOTE 6.3.10; torch writes data descriptors and a zip64 end record for every archive.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::HashSet;

use sphinx_quant::error::printable;

use super::source::Source;
use crate::error::{ConvertError, Result};

/// The most entries an archive may have.
pub(super) const MAX_ENTRIES: u64 = 200_000;
/// The longest central directory read, in bytes.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
const MAX_NAME_BYTES: usize = 1024;

const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;

const END_BYTES: u64 = 22;
const END64_BYTES: u64 = 56;
const LOCATOR64_BYTES: u64 = 20;
const LOCAL_BYTES: u64 = 30;

/// Flag: sizes and checksum follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// Flag: the name is UTF-8.
const FLAG_UTF8: u16 = 1 << 11;

const AGAIN: &str = "get the file again, or re-save it with torch.save";
const INCOMPLETE: &str = "the download is probably incomplete; get the file again";

/// One stored entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    /// First byte of the data in the file.
    pub start: u64,
    pub bytes: u64,
    pub crc32: u32,
}

/// A cursor over bytes already read; every step is checked.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// What the end record says.
struct Ending {
    entries: u64,
    directory: u64,
    directory_bytes: u64,
}

/// A central directory record.
struct Record {
    name: String,
    flags: u16,
    method: u16,
    crc32: u32,
    bytes: u64,
    header: u64,
}

/// Reads the table of contents and compares it with every local header.
///
/// # Errors
/// [`ConvertError::Invalid`] when the two halves differ, entries overlap, are compressed or encrypted, have unsafe or repeated
/// names, or when there is anything before, between end records or behind; a cut file is named as such.
pub(super) fn entries(file: &Source) -> Result<Vec<Entry>> {
    let ending = ending(file)?;
    let records = directory(file, &ending)?;
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_key(|&i| records.get(i).map(|r| r.header));

    let mut out = vec![None; records.len()];
    let mut free = 0; // the first byte that belongs to no entry yet
    for i in order {
        let (Some(record), Some(slot)) = (records.get(i), out.get_mut(i)) else { continue };
        let name = printable(&record.name);
        let bad = |what: String| ConvertError::invalid(file.path(), what, AGAIN).at(record.header);
        if free == 0 && record.header != 0 {
            return Err(bad(format!("{} bytes stand before its first zip entry", record.header)));
        }
        if record.header < free {
            return Err(bad(format!("zip entry {name} overlaps the entry before it")));
        }
        let (entry, end) = local(file, record, ending.directory)?;
        free = end;
        *slot = Some(entry);
    }
    Ok(out.into_iter().flatten().collect())
}

fn ending(file: &Source) -> Result<Ending> {
    let bad = |what: &str, at: u64| ConvertError::invalid(file.path(), what, AGAIN).at(at);
    let cut = || ConvertError::invalid(file.path(), "has no zip end record, its last part is missing", INCOMPLETE);
    let Some(end_at) = file.bytes().checked_sub(END_BYTES) else { return Err(cut()) };

    let tail = file.read_vec(end_at, END_BYTES as usize)?;
    let mut b = Bytes(&tail);
    let fields = (|| {
        Some((b.u32()?, b.u16()?, b.u16()?, b.u16()?, b.u16()?, b.u32()?, b.u32()?, b.u16()?)) //
    })();
    let Some((signature, disk, directory_disk, here, entries, directory_bytes, directory, comment)) = fields else { return Err(cut()) };
    if signature != END || comment != 0 {
        // Perhaps a comment or something appended: look where an end record may then be.
        let reach = file.bytes().min(END_BYTES + 0xffff);
        let window = file.read_vec(file.bytes() - reach, reach as usize)?;
        return match window.windows(4).rposition(|w| w == END.to_le_bytes()) {
            // Cut inside the record itself.
            Some(p) if window.len() - p < END_BYTES as usize => Err(cut()),
            Some(p) => Err(bad("has a comment or other bytes behind its zip end record", file.bytes() - reach + p as u64)),
            None => Err(cut()),
        };
    }
    if (disk, directory_disk) != (0, 0) || here != entries {
        return Err(bad("is one part of a split zip archive", end_at));
    }
    let mut ending = Ending { entries: entries.into(), directory: directory.into(), directory_bytes: directory_bytes.into() };
    let mut directory_end = end_at;

    let locator_at = end_at.checked_sub(LOCATOR64_BYTES);
    let locator = match locator_at {
        Some(at) => Some((at, file.read_vec(at, LOCATOR64_BYTES as usize)?)).filter(|(_, l)| l.starts_with(&LOCATOR64.to_le_bytes())),
        None => None,
    };
    if let Some((locator_at, locator)) = locator {
        let mut b = Bytes(&locator);
        let fields = (|| Some((b.u32()?, b.u32()?, b.u64()?, b.u32()?)))();
        let Some((_, 0, end64_at, 1)) = fields else { return Err(bad("has a zip64 locator for a split archive", locator_at)) };
        if end64_at.checked_add(END64_BYTES) != Some(locator_at) {
            return Err(bad("has a zip64 end record in the wrong place", locator_at));
        }
        let record = file.read_vec(end64_at, END64_BYTES as usize)?;
        let mut b = Bytes(&record);
        let fields = (|| {
            Some((b.u32()?, b.u64()?, b.u16()?, b.u16()?, b.u32()?, b.u32()?, b.u64()?, b.u64()?, b.u64()?, b.u64()?)) //
        })();
        let Some((END64, size, _, _, 0, 0, here, entries64, bytes64, directory64)) = fields else {
            return Err(bad("has a broken zip64 end record", end64_at));
        };
        if size != END64_BYTES - 12 || here != entries64 {
            return Err(bad("has a broken zip64 end record", end64_at));
        }
        // A 32-bit field is either full, or says the same.
        let agrees = (entries == u16::MAX || u64::from(entries) == entries64)
            && (directory_bytes == u32::MAX || u64::from(directory_bytes) == bytes64)
            && (directory == u32::MAX || u64::from(directory) == directory64);
        if !agrees {
            return Err(bad("has two zip end records that contradict each other", end64_at));
        }
        ending = Ending { entries: entries64, directory: directory64, directory_bytes: bytes64 };
        directory_end = end64_at;
    } else if entries == u16::MAX || directory_bytes == u32::MAX || directory == u32::MAX {
        return Err(bad("needs a zip64 end record, which is missing", end_at));
    }

    if ending.directory.checked_add(ending.directory_bytes) != Some(directory_end) {
        return Err(bad("has bytes before its archive or between its zip directory and end record, or several end records", end_at));
    }
    if ending.entries > MAX_ENTRIES || ending.directory_bytes > MAX_DIRECTORY_BYTES {
        return Err(bad(&format!("declares {} zip entries; at most {MAX_ENTRIES} are read", ending.entries), end_at));
    }
    Ok(ending)
}

fn directory(file: &Source, ending: &Ending) -> Result<Vec<Record>> {
    // Lies in the file, as `ending` has checked, and is at most 64 MiB.
    let raw = file.read_vec(ending.directory, ending.directory_bytes as usize)?;
    let mut b = Bytes(&raw);
    let mut records = Vec::new();
    let mut names = HashSet::new();
    while !b.0.is_empty() {
        let at = ending.directory + (raw.len() - b.0.len()) as u64;
        let bad = |what: String| ConvertError::invalid(file.path(), what, AGAIN).at(at);
        let Some(record) = record(&mut b) else { return Err(bad("has a broken zip directory".into())) };
        let record = record.map_err(bad)?;
        if !names.insert(record.name.to_lowercase()) {
            return Err(bad(format!("has two zip entries named {} (perhaps in different case)", printable(&record.name))));
        }
        if records.len() as u64 >= ending.entries {
            return Err(bad(format!("declares {} zip entries but lists more", ending.entries)));
        }
        records.push(record);
    }
    if records.len() as u64 != ending.entries {
        let what = format!("declares {} zip entries but lists {}", ending.entries, records.len());
        return Err(ConvertError::invalid(file.path(), what, AGAIN).at(ending.directory));
    }
    Ok(records)
}

/// The next central record; none when the bytes do not make one, an error text when they make one that is refused.
fn record(b: &mut Bytes) -> Option<Result<Record, String>> {
    if b.u32()? != CENTRAL {
        return None;
    }
    let (_made_by, _needs) = (b.u16()?, b.u16()?);
    let (flags, method) = (b.u16()?, b.u16()?);
    let (_time, _date) = (b.u16()?, b.u16()?);
    let crc32 = b.u32()?;
    let (mut stored, mut bytes) = (u64::from(b.u32()?), u64::from(b.u32()?));
    let (name, extra, comment) = (b.u16()?, b.u16()?, b.u16()?);
    let (disk, _internal, _external) = (b.u16()?, b.u16()?, b.u32()?);
    let mut header = u64::from(b.u32()?);
    let name = b.take(name.into())?;
    let extra = b.take(extra.into())?;
    b.take(comment.into())?;

    let name = match checked_name(name) {
        Ok(name) => name,
        Err(what) => return Some(Err(what)),
    };
    let shown = printable(&name);
    if flags & !(FLAG_DESCRIPTOR | FLAG_UTF8) != 0 {
        return Some(Err(format!("zip entry {shown} is encrypted or otherwise unusual (flags {flags:#06x})")));
    }
    if method != 0 && name.contains("/code/") {
        return Some(Err("is a TorchScript archive (a program, not a state)".into()));
    }
    if method != 0 {
        return Some(Err(format!("zip entry {shown} is compressed (method {method}), torch.save stores its entries")));
    }
    if disk != 0 {
        return Some(Err(format!("zip entry {shown} lies in another part of a split archive")));
    }
    if !widen(extra, [&mut bytes, &mut stored, &mut header]) {
        return Some(Err(format!("zip entry {shown} has a zip64 field that contradicts its record")));
    }
    if bytes != stored {
        return Some(Err(format!("zip entry {shown} takes {stored} bytes for {bytes} although it is not compressed")));
    }
    Some(Ok(Record { name, flags, method, crc32, bytes, header }))
}

/// Replaces the fields that are full by their zip64 values. Exactly those must be there, in this order.
fn widen<const N: usize>(extra: &[u8], fields: [&mut u64; N]) -> bool {
    let mut wide = None;
    let mut b = Bytes(extra);
    while !b.0.is_empty() {
        // A rest shorter than a field's head is padding, as some writers leave it.
        let (Some(id), Some(length)) = (b.u16(), b.u16()) else { break };
        let Some(body) = b.take(length.into()) else { return false };
        if id == 1 && wide.replace(body).is_some() {
            return false;
        }
    }
    let mut wide = Bytes(wide.unwrap_or_default());
    for field in fields {
        if *field == u64::from(u32::MAX) {
            match wide.u64() {
                Some(value) => *field = value,
                None => return false,
            }
        }
    }
    wide.0.is_empty()
}

/// A relative path without tricks.
fn checked_name(raw: &[u8]) -> Result<String, String> {
    let Ok(name) = std::str::from_utf8(raw) else { return Err("has a zip entry whose name is not UTF-8".into()) };
    let unsafe_part = name.split('/').any(|part| part == ".." || part == ".");
    let absolute = name.starts_with('/') || name.contains('\\');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || unsafe_part || absolute || name.chars().any(char::is_control) {
        return Err(format!("has a zip entry with an unsafe name, \"{}\"", printable(name)));
    }
    Ok(name.to_owned())
}

/// Compares a record with its local header. Returns the entry and the first byte behind it.
fn local(file: &Source, record: &Record, limit: u64) -> Result<(Entry, u64)> {
    let name = printable(&record.name);
    let bad = |what: String| ConvertError::invalid(file.path(), what, AGAIN).at(record.header);
    let beyond = || bad(format!("zip entry {name} reaches into the zip directory"));
    let differs = |what: &str| bad(format!("zip entry {name}: its {what} in the local header and in the zip directory differ"));
    let broken = || bad(format!("zip entry {name} has no local header where the zip directory says"));

    let fixed_end = record.header.checked_add(LOCAL_BYTES).filter(|&e| e <= limit).ok_or_else(beyond)?;
    let head = file.read_vec(record.header, LOCAL_BYTES as usize)?;
    let mut b = Bytes(&head);
    let fields = (|| {
        let signature = b.u32()?;
        let (_needs, flags, method, _time, _date) = (b.u16()?, b.u16()?, b.u16()?, b.u16()?, b.u16()?);
        Some((signature, flags, method, b.u32()?, b.u32()?, b.u32()?, b.u16()?, b.u16()?))
    })();
    let Some((LOCAL, flags, method, crc32, stored, bytes, name_bytes, extra_bytes)) = fields else { return Err(broken()) };
    let start = fixed_end + u64::from(name_bytes) + u64::from(extra_bytes);
    if start > limit {
        return Err(beyond());
    }
    let rest = file.read_vec(fixed_end, usize::from(name_bytes) + usize::from(extra_bytes))?;
    let mut b = Bytes(&rest);
    let (Some(local_name), Some(extra)) = (b.take(name_bytes.into()), b.take(extra_bytes.into())) else { return Err(broken()) };

    if local_name != record.name.as_bytes() {
        return Err(differs("name"));
    }
    if method != record.method {
        return Err(differs("method"));
    }
    if flags != record.flags {
        return Err(differs("flags"));
    }
    let described = flags & FLAG_DESCRIPTOR != 0;
    let (mut bytes, mut stored) = (u64::from(bytes), u64::from(stored));
    if !described && !widen(extra, [&mut bytes, &mut stored]) {
        return Err(bad(format!("zip entry {name} has a zip64 field that contradicts its record")));
    }
    // With a descriptor the local header may leave these empty (torch does); it may not say something else.
    let is = |found: u64, wanted: u64| found == wanted || (described && (found == 0 || found == u64::from(u32::MAX)));
    if !is(bytes, record.bytes) || !is(stored, record.bytes) {
        return Err(differs("size"));
    }
    if !is(crc32.into(), record.crc32.into()) {
        return Err(differs("checksum"));
    }

    let mut end = start.checked_add(record.bytes).filter(|&e| e <= limit).ok_or_else(beyond)?;
    if described {
        let reach = (limit - end).min(24) as usize;
        let raw = file.read_vec(end, reach)?;
        let length = descriptor(&raw, record).ok_or_else(|| differs("data descriptor"))?;
        end += length;
    }
    Ok((Entry { name: record.name.clone(), start, bytes: record.bytes, crc32: record.crc32 }, end))
}

/// Length of the data descriptor these bytes begin with, if it says what the record says; sizes may be 4 or 8 bytes wide.
fn descriptor(raw: &[u8], record: &Record) -> Option<u64> {
    let crc = record.crc32.to_le_bytes();
    let narrow = u32::try_from(record.bytes).ok().map(|n| n.to_le_bytes().repeat(2));
    let wide = record.bytes.to_le_bytes().repeat(2);
    let body = raw.strip_prefix(&DESCRIPTOR.to_le_bytes())?.strip_prefix(&crc)?;
    // The wide form first: for an empty entry the narrow one is a prefix of it.
    if body.starts_with(&wide) {
        return Some(24);
    }
    narrow.filter(|n| body.starts_with(n)).map(|_| 16)
}
