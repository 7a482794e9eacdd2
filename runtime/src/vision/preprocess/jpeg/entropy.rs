//! Huffman codes and the coefficients behind them.

use super::{Fault, ZIGZAG};

/// Bits of a code that one look-up resolves.
const LOOK: u32 = 9;

/// A Huffman table.
pub(super) struct Huffman {
    /// Length and symbol by the next [`LOOK`] bits; length 0: the code is longer.
    fast: [(u8, u8); 1 << LOOK],
    /// Per length: one past the largest code, left-aligned to 16 bits, and what turns a code into its symbol's index.
    limit: [u32; 18],
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// The table of `counts[i]` codes of `i + 1` bits; `None` when there are more codes than their lengths allow.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Huffman> {
        let mut table = Huffman { fast: [(0, 0); 1 << LOOK], limit: [0; 18], offset: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                // A code of ones only is not allowed either.
                if code >= (1 << length) - u32::from(length == 16) {
                    return None;
                }
                let symbol = *symbols.get(index)?;
                if length <= LOOK {
                    let first = (code << (LOOK - length)) as usize;
                    table.fast[first..first + (1 << (LOOK - length))].fill((length as u8, symbol));
                }
                code += 1;
                index += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        table.limit[17] = u32::MAX;
        Some(table)
    }
}

/// Bits of a scan, most significant first, up to the next marker. Behind the last bit come zeros.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bits not yet taken, left-aligned, and how many of them are from the file.
    word: u64,
    have: u32,
    stopped: bool,
    exhausted: bool,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits { bytes, at, word: 0, have: 0, stopped: false, exhausted: false }
    }

    /// Whether more bits were asked for than there are before the marker.
    pub(super) fn exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether the file ends here, without a marker.
    pub(super) fn at_end(&self) -> bool {
        self.at + 1 >= self.bytes.len()
    }

    /// Where the next marker is to be looked for.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn refill(&mut self) {
        while self.have <= 56 && !self.stopped {
            let Some(&byte) = self.bytes.get(self.at) else {
                self.stopped = true;
                return;
            };
            if byte == 0xff {
                match self.bytes.get(self.at + 1) {
                    Some(0) => self.at += 1,
                    _ => {
                        self.stopped = true;
                        return;
                    }
                }
            }
            self.at += 1;
            self.word |= u64::from(byte) << (56 - self.have);
            self.have += 8;
        }
    }

    fn drop_bits(&mut self, count: u32) {
        self.word <<= count;
        if count > self.have {
            self.exhausted = true;
            self.have = 0;
        } else {
            self.have -= count;
        }
    }

    /// The next `count` (at most 16) bits as a number.
    fn take(&mut self, count: u32) -> u32 {
        if count == 0 {
            return 0;
        }
        if self.have < count {
            self.refill();
        }
        let value = (self.word >> (64 - count)) as u32;
        self.drop_bits(count);
        value
    }

    /// A number of `count` bits whose upper half is positive.
    fn signed(&mut self, count: u32) -> i32 {
        let value = self.take(count) as i32;
        if count > 0 && value < 1 << (count - 1) { value - (1 << count) + 1 } else { value }
    }

    fn symbol(&mut self, table: &Huffman) -> u8 {
        if self.have < 16 {
            self.refill();
        }
        let (length, symbol) = table.fast[(self.word >> (64 - LOOK)) as usize];
        if length > 0 {
            self.drop_bits(length.into());
            return symbol;
        }
        let ahead = (self.word >> 48) as u32;
        let length = (LOOK + 1..18).find(|&l| ahead < table.limit[l as usize]).unwrap_or(17);
        self.drop_bits(length.min(16));
        if length > 16 {
            return 0; // no such code: the reference goes on with 0
        }
        let index = (ahead >> (16 - length)) as i32 + table.offset[length as usize];
        table.symbols.get(index as usize).copied().unwrap_or(0)
    }

    /// Goes to behind the restart marker that is due; false when there is none.
    pub(super) fn restart(&mut self) -> bool {
        (self.word, self.have) = (0, 0);
        loop {
            match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0xd0..=0xd7)) => {
                    self.at += 2;
                    (self.stopped, self.exhausted) = (false, false);
                    return true;
                }
                (Some(0xff), Some(0 | 0xff)) | (Some(0..=0xfe), Some(_)) => self.at += 1,
                (_, None) => {
                    self.exhausted = true;
                    return false;
                }
                _ => return false,
            }
        }
    }
}

/// What a scan carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ScanKind {
    /// Whole blocks.
    Sequential,
    /// First bits of DC, `low` bits still to come.
    DcFirst { low: u8 },
    /// One more bit of DC.
    DcMore { low: u8 },
    /// First bits of a run of AC coefficients.
    AcFirst { from: u8, to: u8, low: u8 },
    /// One more bit of them.
    AcMore { from: u8, to: u8, low: u8 },
}

impl ScanKind {
    /// From the scan header's last three bytes.
    pub(super) fn new(progressive: bool, &[from, to, bits]: &[u8; 3], components: usize) -> Result<ScanKind, Fault> {
        if !progressive {
            return Ok(ScanKind::Sequential);
        }
        let (high, low) = (bits >> 4, bits & 15);
        let band = if from == 0 { to == 0 } else { from <= to && to <= 63 && components == 1 };
        if !band || low > 13 || (high != 0 && high != low + 1) {
            return Err(Fault::damaged("an impossible progressive scan"));
        }
        Ok(match (from, high) {
            (0, 0) => ScanKind::DcFirst { low },
            (0, _) => ScanKind::DcMore { low },
            (_, 0) => ScanKind::AcFirst { from, to, low },
            (_, _) => ScanKind::AcMore { from, to, low },
        })
    }

    pub(super) fn needs_dc(self) -> bool {
        matches!(self, ScanKind::Sequential | ScanKind::DcFirst { .. })
    }

    pub(super) fn needs_ac(self) -> bool {
        matches!(self, ScanKind::Sequential | ScanKind::AcFirst { .. } | ScanKind::AcMore { .. })
    }

    /// Reads this scan's share of one block. Tables that the kind needs are there.
    pub(super) fn read(
        self,
        bits: &mut Bits,
        dc: Option<&Huffman>,
        ac: Option<&Huffman>,
        prediction: &mut i32,
        end_of_band: &mut u32,
        block: &mut [i16; 64],
    ) {
        match (self, dc, ac) {
            (ScanKind::Sequential, Some(dc), Some(ac)) => {
                let size = bits.symbol(dc).into();
                *prediction = prediction.wrapping_add(bits.signed(size));
                block[0] = *prediction as i16;
                let mut k = 1;
                while k < 64 {
                    let symbol = bits.symbol(ac);
                    let (run, size) = (symbol >> 4, symbol & 15);
                    if size == 0 {
                        if run < 15 {
                            break;
                        }
                        k += 16;
                        continue;
                    }
                    k += usize::from(run);
                    block[ZIGZAG[k.min(63)] as usize] = bits.signed(size.into()) as i16;
                    k += 1;
                }
            }
            (ScanKind::DcFirst { low }, Some(dc), _) => {
                let size = bits.symbol(dc).into();
                *prediction = prediction.wrapping_add(bits.signed(size));
                block[0] = (*prediction << low) as i16;
            }
            (ScanKind::DcMore { low }, ..) => block[0] |= (bits.take(1) as i16) << low,
            (ScanKind::AcFirst { from, to, low }, _, Some(ac)) => {
                if *end_of_band > 0 {
                    *end_of_band -= 1;
                    return;
                }
                let mut k = usize::from(from);
                while k <= usize::from(to) {
                    let symbol = bits.symbol(ac);
                    let (run, size) = (symbol >> 4, symbol & 15);
                    if size == 0 {
                        if run < 15 {
                            *end_of_band = (1 << run) + bits.take(run.into()) - 1;
                            break;
                        }
                        k += 16;
                        continue;
                    }
                    k += usize::from(run);
                    block[ZIGZAG[k.min(63)] as usize] = (bits.signed(size.into()) << low) as i16;
                    k += 1;
                }
            }
            (ScanKind::AcMore { from, to, low }, _, Some(ac)) => {
                let (plus, minus) = (1i16 << low, -1i16 << low);
                let (mut k, to) = (usize::from(from), usize::from(to));
                // One more bit for a coefficient that is no longer zero.
                let refine = |bits: &mut Bits, value: &mut i16| {
                    if bits.take(1) == 1 && *value & plus == 0 {
                        *value = value.wrapping_add(if *value >= 0 { plus } else { minus });
                    }
                };
                while *end_of_band == 0 && k <= to {
                    let symbol = bits.symbol(ac);
                    let (mut run, size) = (symbol >> 4, symbol & 15);
                    let fresh = match size {
                        0 if run < 15 => {
                            *end_of_band = (1 << run) + bits.take(run.into());
                            break;
                        }
                        0 => 0,
                        _ if bits.take(1) == 1 => plus,
                        _ => minus,
                    };
                    while k <= to {
                        let value = &mut block[ZIGZAG[k] as usize];
                        if *value != 0 {
                            refine(bits, value);
                        } else if run == 0 {
                            *value = fresh;
                            break;
                        } else {
                            run -= 1;
                        }
                        k += 1;
                    }
                    k += 1;
                }
                if *end_of_band > 0 {
                    for &position in ZIGZAG.iter().take(to + 1).skip(k) {
                        let value = &mut block[position as usize];
                        if *value != 0 {
                            refine(bits, value);
                        }
                    }
                    *end_of_band -= 1;
                }
            }
            _ => {}
        }
    }
}
