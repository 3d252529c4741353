//! What the two agents say to each other, and how each message lies in a payload.

use std::fmt;

use super::{
    MAX_PAGE_SIZES, MAX_TEXT, WireError,
    batch::Batch,
    drops::Drops,
    varint::{Reader, put, put_text},
};

/// Where the guest's agent has its observations from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InGuest {
    /// From nowhere: nothing works in this guest.
    #[default]
    Nothing,
    /// Intel's PEBS in the guest: single accesses.
    Pebs,
    /// AMD's IBS in the guest: single accesses.
    Ibs,
    /// DAMON on the guest's physical addresses: regions.
    Damon,
    /// The page faults of the guest's processes: first accesses.
    Faults,
}

impl InGuest {
    /// Every one, by its number on the wire.
    pub const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Pebs,
        Self::Ibs,
        Self::Damon,
        Self::Faults,
    ];

    const fn number(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Pebs => 1,
            Self::Ibs => 2,
            Self::Damon => 3,
            Self::Faults => 4,
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let number = reader.byte()?;
        Self::ALL
            .get(usize::from(number))
            .copied()
            .ok_or(WireError::OutOfBounds("the in-guest source"))
    }

    /// The word that people read.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Pebs => "pebs",
            Self::Ibs => "ibs",
            Self::Damon => "damon",
            Self::Faults => "page-faults",
        }
    }
}

impl fmt::Display for InGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The beginning of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The version of the guest's agent.
    pub agent: String,
    /// The guest's kernel release.
    pub kernel: String,
    /// The guest's page sizes in bytes, each a power of two; the base page first.
    pub page_sizes: Vec<u64>,
    /// Memory that the guest's kernel manages, in bytes.
    pub memory_bytes: u64,
    /// The source that the agent has chosen.
    pub source: InGuest,
    /// The sources that work in this guest.
    pub can: Vec<InGuest>,
}

impl Hello {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        for text in [&self.agent, &self.kernel] {
            put_bounded(out, text)?;
        }
        if self.page_sizes.len() > MAX_PAGE_SIZES {
            return Err(WireError::OutOfBounds("the number of page sizes"));
        }
        out.push(self.page_sizes.len() as u8);
        for size in &self.page_sizes {
            if !size.is_power_of_two() {
                return Err(WireError::OutOfBounds("a page size"));
            }
            out.push(size.trailing_zeros() as u8);
        }
        put(out, self.memory_bytes);
        out.push(self.source.number());
        let can = InGuest::ALL.iter().filter(|own| self.can.contains(own));
        let bits = can.fold(0_u64, |bits, own| bits | 1 << own.number());
        put(out, bits);
        Ok(())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (agent, kernel) = (reader.text()?, reader.text()?);
        let count = reader.small(MAX_PAGE_SIZES as u32, "the number of page sizes")?;
        let page_sizes = (0..count).map(|_| match reader.byte()? {
            shift @ 0..=63 => Ok(1 << shift),
            _ => Err(WireError::OutOfBounds("a page size")),
        });
        let page_sizes = page_sizes.collect::<Result<_, _>>()?;
        let memory_bytes = reader.number()?;
        let source = InGuest::read(reader)?;
        // Bits of sources that a later version may know are no error.
        let bits = reader.number()?;
        let can = InGuest::ALL
            .into_iter()
            .filter(|own| bits >> own.number() & 1 == 1)
            .collect();
        Ok(Self {
            agent,
            kernel,
            page_sizes,
            memory_bytes,
            source,
            can,
        })
    }
}

/// A sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The source in use.
    pub source: InGuest,
    /// Observations made in this session.
    pub taken: u64,
    /// What was lost or left out.
    pub drops: Drops,
    /// CPU time that the agent has used, in nanoseconds.
    pub cpu_ns: u64,
    /// What is wrong, for people; empty if nothing.
    pub trouble: String,
}

/// How much the guest's agent may send in this session, from its beginning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Frames with a lower sequence number may be sent.
    pub sequence: u64,
    /// Bytes of frames, headers included.
    pub bytes: u64,
}

/// The pace that the host wishes for. The guest's agent keeps to its own limits. All zero: observe nothing
/// for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Single accesses a second.
    pub accesses_per_s: u32,
    /// For DAMON: time between two looks, in microseconds.
    pub sampling_us: u32,
    /// For DAMON: time between two reports, in microseconds.
    pub aggregation_us: u32,
    /// For DAMON: most regions.
    pub max_regions: u32,
}

impl Wish {
    /// Whether nothing is to be observed for now.
    #[must_use]
    pub fn is_rest(&self) -> bool {
        *self == Self::default()
    }

    fn put(&self, out: &mut Vec<u8>) {
        for value in [
            self.accesses_per_s,
            self.sampling_us,
            self.aggregation_us,
            self.max_regions,
        ] {
            put(out, u64::from(value));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            accesses_per_s: reader.small(u32::MAX, "accesses a second")?,
            sampling_us: reader.small(u32::MAX, "the sampling interval")?,
            aggregation_us: reader.small(u32::MAX, "the aggregation interval")?,
            max_regions: reader.small(u32::MAX, "the number of regions")?,
        })
    }
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Guest: a session begins.
    Hello(Hello),
    /// Guest: observations.
    Batch(Batch),
    /// Guest: a sign of life.
    Status(Status),
    /// Host: who is there? Begin a new session.
    Ask,
    /// Host: the session is accepted.
    Welcome(Credit, Wish),
    /// Host: more may be sent.
    Credit(Credit),
    /// Host: another pace, please.
    Wish(Wish),
    /// Host: send nothing more.
    Stop,
}

impl Message {
    pub(super) const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Batch(_) => 2,
            Self::Status(_) => 3,
            Self::Ask => 16,
            Self::Welcome(..) => 17,
            Self::Credit(_) => 18,
            Self::Wish(_) => 19,
            Self::Stop => 20,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Hello(hello) => hello.put(out)?,
            Self::Batch(batch) => batch.put(out)?,
            Self::Status(status) => {
                out.push(status.source.number());
                put(out, status.taken);
                status.drops.put(out);
                put(out, status.cpu_ns);
                put_bounded(out, &status.trouble)?;
            }
            Self::Ask | Self::Stop => {}
            Self::Welcome(credit, wish) => {
                put_credit(out, *credit);
                wish.put(out);
            }
            Self::Credit(credit) => put_credit(out, *credit),
            Self::Wish(wish) => wish.put(out),
        }
        Ok(())
    }

    /// Reads a message of this kind from a payload.
    pub(super) fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let message = match kind {
            1 => Self::Hello(Hello::read(&mut reader)?),
            2 => Self::Batch(Batch::read(&mut reader)?),
            3 => Self::Status(Status {
                source: InGuest::read(&mut reader)?,
                taken: reader.number()?,
                drops: Drops::read(&mut reader)?,
                cpu_ns: reader.number()?,
                trouble: reader.text()?,
            }),
            16 => Self::Ask,
            17 => Self::Welcome(read_credit(&mut reader)?, Wish::read(&mut reader)?),
            18 => Self::Credit(read_credit(&mut reader)?),
            19 => Self::Wish(Wish::read(&mut reader)?),
            20 => Self::Stop,
            _ => return Err(WireError::Kind(kind)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn put_credit(out: &mut Vec<u8>, credit: Credit) {
    put(out, credit.sequence);
    put(out, credit.bytes);
}

fn read_credit(reader: &mut Reader<'_>) -> Result<Credit, WireError> {
    Ok(Credit {
        sequence: reader.number()?,
        bytes: reader.number()?,
    })
}

fn put_bounded(out: &mut Vec<u8>, text: &str) -> Result<(), WireError> {
    if text.len() > MAX_TEXT {
        return Err(WireError::OutOfBounds("a text's length"));
    }
    put_text(out, text);
    Ok(())
}
