//! Reads MessagePack from strangers: no recursion, and no allocation by a length that is only
//! claimed.
//!
//! A pull reader, as the events need: hashes and tokens go straight into their vectors, what is
//! not wanted is stepped over. A tree of values (`rmpv`) costs four times the time and more. The
//! markers are `rmp`'s; its readers go through `std::io::Read`, which gives up the slice.

use rmp::Marker;

/// Why a value could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The input ends inside the value: nothing after it can be read either.
    #[error("ends early")]
    Cut,
    /// The value is of another type; it can be stepped over.
    #[error("expected {0}")]
    Other(&'static str),
}

/// A place in the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the beginning of `input`.
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Trouble> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Trouble::Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Trouble> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Trouble::Cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn marker(&mut self) -> Result<Marker, Trouble> {
        Ok(Marker::from_u8(self.bytes::<1>()?[0]))
    }

    /// Looks at the next marker.
    pub(super) fn peek(&self) -> Result<Marker, Trouble> {
        self.rest.first().map(|byte| Marker::from_u8(*byte)).ok_or(Trouble::Cut)
    }

    fn count8(&mut self) -> Result<usize, Trouble> {
        Ok(usize::from(self.bytes::<1>()?[0]))
    }

    fn count16(&mut self) -> Result<usize, Trouble> {
        Ok(usize::from(u16::from_be_bytes(self.bytes()?)))
    }

    fn count32(&mut self) -> Result<usize, Trouble> {
        usize::try_from(u32::from_be_bytes(self.bytes()?)).map_err(|_| Trouble::Cut)
    }

    /// Takes a nil, if one is next.
    pub(super) fn nil(&mut self) -> Result<bool, Trouble> {
        let is_nil = self.peek()? == Marker::Null;
        if is_nil {
            self.marker()?;
        }
        Ok(is_nil)
    }

    /// Elements of the array that begins here. One takes a byte at least, so what is promised
    /// beyond the input is cut.
    pub(super) fn array(&mut self) -> Result<usize, Trouble> {
        let count = match self.marker()? {
            Marker::FixArray(count) => usize::from(count),
            Marker::Array16 => self.count16()?,
            Marker::Array32 => self.count32()?,
            _ => return Err(Trouble::Other("an array")),
        };
        if count > self.rest.len() { Err(Trouble::Cut) } else { Ok(count) }
    }

    /// Pairs of the map that begins here.
    pub(super) fn map(&mut self) -> Result<usize, Trouble> {
        let count = match self.marker()? {
            Marker::FixMap(count) => usize::from(count),
            Marker::Map16 => self.count16()?,
            Marker::Map32 => self.count32()?,
            _ => return Err(Trouble::Other("a map")),
        };
        if count > self.rest.len() / 2 { Err(Trouble::Cut) } else { Ok(count) }
    }

    /// A string; one that is not UTF-8 is of another type.
    pub(super) fn text(&mut self) -> Result<&'a str, Trouble> {
        let count = match self.marker()? {
            Marker::FixStr(count) => usize::from(count),
            Marker::Str8 => self.count8()?,
            Marker::Str16 => self.count16()?,
            Marker::Str32 => self.count32()?,
            _ => return Err(Trouble::Other("a string")),
        };
        std::str::from_utf8(self.take(count)?).map_err(|_| Trouble::Other("a string in UTF-8"))
    }

    /// An integer of either sign, as its 64 bits, or bytes.
    pub(super) fn name(&mut self) -> Result<Name<'a>, Trouble> {
        Ok(Name::Integer(match self.marker()? {
            Marker::FixPos(value) => u64::from(value),
            Marker::FixNeg(value) => i64::from(value).cast_unsigned(),
            Marker::U8 => u64::from(self.bytes::<1>()?[0]),
            Marker::U16 => u64::from(u16::from_be_bytes(self.bytes()?)),
            Marker::U32 => u64::from(u32::from_be_bytes(self.bytes()?)),
            Marker::U64 => u64::from_be_bytes(self.bytes()?),
            Marker::I8 => i64::from(i8::from_be_bytes(self.bytes()?)).cast_unsigned(),
            Marker::I16 => i64::from(i16::from_be_bytes(self.bytes()?)).cast_unsigned(),
            Marker::I32 => i64::from(i32::from_be_bytes(self.bytes()?)).cast_unsigned(),
            Marker::I64 => i64::from_be_bytes(self.bytes()?).cast_unsigned(),
            Marker::Bin8 => return self.count8().and_then(|n| self.take(n)).map(Name::Bytes),
            Marker::Bin16 => return self.count16().and_then(|n| self.take(n)).map(Name::Bytes),
            Marker::Bin32 => return self.count32().and_then(|n| self.take(n)).map(Name::Bytes),
            _ => return Err(Trouble::Other("an integer or bytes")),
        }))
    }

    /// An integer from 0 to `u32::MAX`.
    #[inline]
    pub(super) fn small(&mut self) -> Result<u32, Trouble> {
        const WANTED: Trouble = Trouble::Other("an integer from 0 to 4294967295");
        // Tokens are most of a batch and nearly all of them one of these.
        match *self.rest {
            [low @ 0..=0x7f, ref rest @ ..] | [0xcc, low, ref rest @ ..] => {
                self.rest = rest;
                Ok(u32::from(low))
            }
            [0xcd, high, low, ref rest @ ..] => {
                self.rest = rest;
                Ok(u32::from(u16::from_be_bytes([high, low])))
            }
            [0xce, a, b, c, d, ref rest @ ..] => {
                self.rest = rest;
                Ok(u32::from_be_bytes([a, b, c, d]))
            }
            _ => match self.name() {
                // Negative ones are huge as 64 bits.
                Ok(Name::Integer(value)) => u32::try_from(value).map_err(|_| WANTED),
                Ok(Name::Bytes(_)) | Err(Trouble::Other(_)) => Err(WANTED),
                Err(cut) => Err(cut),
            },
        }
    }

    /// A number.
    pub(super) fn number(&mut self) -> Result<f64, Trouble> {
        match self.peek()? {
            Marker::F64 => {
                self.marker()?;
                Ok(f64::from_be_bytes(self.bytes()?))
            }
            Marker::F32 => {
                self.marker()?;
                Ok(f64::from(f32::from_be_bytes(self.bytes()?)))
            }
            _ => match self.name()? {
                Name::Integer(value) => Ok(value.cast_signed() as f64),
                Name::Bytes(_) => Err(Trouble::Other("a number")),
            },
        }
    }

    /// Steps over one value, whatever it is; gives its bytes.
    pub(super) fn skip(&mut self) -> Result<&'a [u8], Trouble> {
        let whole = self.rest;
        let mut open: u64 = 1;
        while open > 0 {
            open -= 1;
            let (bytes, values) = match self.marker()? {
                Marker::FixPos(_)
                | Marker::FixNeg(_)
                | Marker::Null
                | Marker::True
                | Marker::False
                | Marker::Reserved => (0, 0),
                Marker::U8 | Marker::I8 => (1, 0),
                Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
                Marker::FixExt2 => (3, 0),
                Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
                Marker::FixExt4 => (5, 0),
                Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
                Marker::FixExt8 => (9, 0),
                Marker::FixExt16 => (17, 0),
                Marker::FixStr(count) => (usize::from(count), 0),
                Marker::Str8 | Marker::Bin8 => (self.count8()?, 0),
                Marker::Str16 | Marker::Bin16 => (self.count16()?, 0),
                Marker::Str32 | Marker::Bin32 => (self.count32()?, 0),
                Marker::Ext8 => (self.count8()? + 1, 0),
                Marker::Ext16 => (self.count16()? + 1, 0),
                Marker::Ext32 => (self.count32()?.saturating_add(1), 0),
                Marker::FixArray(count) => (0, u64::from(count)),
                Marker::Array16 => (0, self.count16()? as u64),
                Marker::Array32 => (0, self.count32()? as u64),
                Marker::FixMap(count) => (0, 2 * u64::from(count)),
                Marker::Map16 => (0, 2 * self.count16()? as u64),
                Marker::Map32 => (0, 2 * self.count32()? as u64),
            };
            self.take(bytes)?;
            open += values;
            if open > self.rest.len() as u64 {
                return Err(Trouble::Cut);
            }
        }
        Ok(&whole[..whole.len() - self.rest.len()])
    }

    /// Reads a value by `read`; one of another type is stepped over and `Err` says what was
    /// wanted.
    ///
    /// # Errors
    /// `Cut`, where the value itself does not end.
    pub(super) fn typed<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Trouble>,
    ) -> Result<Result<T, Trouble>, Trouble> {
        let start = *self;
        match read(self) {
            Ok(value) => Ok(Ok(value)),
            Err(trouble) => {
                *self = start;
                self.skip()?;
                Ok(Err(trouble))
            }
        }
    }
}

/// How engines name blocks.
pub(super) enum Name<'a> {
    /// An integer; a negative one as its two's complement.
    Integer(u64),
    /// A digest.
    Bytes(&'a [u8]),
}
