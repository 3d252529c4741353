//! The content of a data block: accesses in columns, so that like stands beside like.
//!
//! ```text
//! numbers    events; bytes of the columns times, addresses, shapes, events
//! controls   a byte for each access: slot (bits 0-3), kind (4-5), another shape (6), another step (7)
//! times      where bit 7 is set: nanoseconds since the access before, else as many as last
//! addresses  zigzag difference to the slot's address
//! shapes     where bit 6 is set: length and weight, else as last
//! events     accesses since the event before, and the event
//! ```
//!
//! All numbers are LEB128 varints. A program's accesses alternate between a few places (stack, heap,
//! tables), each of which is walked in small steps. Slots 0 to 7 are the last eight such places, the
//! newest first; an access takes the first of them that lies within 2 KiB, and its address moves to the
//! front. Slot 8 says that none is near: the difference is to slot 0. Slot 9 says that it begins where
//! the access before ended, as regions do; it has no difference.
//!
//! At a block's begin all slots are 0, the step is 0, length and weight are 1.

use tier_core::{
    sample::AccessKind,
    time::Time,
    wire::{
        WireError,
        varint::{Reader, put, unzigzag, zigzag},
    },
};

use super::{MAX_CONTENT, MAX_EVENTS, MAX_RECORDS, event::Event};
use crate::machine::Access;

const SLOTS: usize = 8;
const NONE_NEAR: u8 = 8;
const BEHIND: u8 = 9;
/// Half a page: an access that is nearer belongs to the same walk.
const NEAR: u64 = 2048;
const SHAPE: u8 = 1 << 6;
const STEP: u8 = 1 << 7;
/// Room for an access: four numbers of at most 10 bytes and its control byte. For an event: 20 numbers
/// and a text.
const MOST_BYTES: usize = 400;

/// What accesses refer to: the same when written and when read.
#[derive(Clone, Debug)]
struct Context {
    at: u64,
    step: u64,
    slots: [u64; SLOTS],
    len: u64,
    weight: u32,
}

impl Context {
    const fn new(first_time: u64) -> Self {
        Self {
            at: first_time,
            step: 0,
            slots: [0; SLOTS],
            len: 1,
            weight: 1,
        }
    }

    /// Moves slot `slot` to the front with another address; for [`NONE_NEAR`] and [`BEHIND`] the oldest
    /// leaves.
    #[inline]
    fn remember(&mut self, slot: u8, address: u64) {
        let last = usize::from(slot).min(SLOTS - 1);
        self.slots.copy_within(0..last, 1);
        self.slots[0] = address;
    }

    /// Where the access before ended; it was checked not to overflow.
    const fn behind(&self) -> u64 {
        self.slots[0].wrapping_add(self.len)
    }
}

const fn kind_number(kind: AccessKind) -> u8 {
    match kind {
        AccessKind::Any => 0,
        AccessKind::Load => 1,
        AccessKind::Store => 2,
    }
}

/// Collects accesses and events for a block.
#[derive(Debug)]
pub(super) struct Columns {
    context: Context,
    first_time: u64,
    controls: Vec<u8>,
    times: Vec<u8>,
    addresses: Vec<u8>,
    shapes: Vec<u8>,
    events: Vec<u8>,
    event_count: usize,
    last_event: usize,
}

impl Columns {
    pub(super) const fn new() -> Self {
        Self {
            context: Context::new(0),
            first_time: 0,
            controls: Vec::new(),
            times: Vec::new(),
            addresses: Vec::new(),
            shapes: Vec::new(),
            events: Vec::new(),
            event_count: 0,
            last_event: 0,
        }
    }

    /// Whether nothing was collected.
    pub(super) const fn is_empty(&self) -> bool {
        self.controls.is_empty() && self.event_count == 0
    }

    /// Whether there may be no room for more.
    pub(super) const fn is_full(&self) -> bool {
        let bytes = self.controls.len()
            + self.times.len()
            + self.addresses.len()
            + self.shapes.len()
            + self.events.len();
        self.controls.len() >= MAX_RECORDS
            || self.event_count >= MAX_EVENTS
            || bytes > MAX_CONTENT - 2 * MOST_BYTES
    }

    /// The time of the first access, and the number of them.
    pub(super) const fn summary(&self) -> (u64, u32) {
        // At most 65,536.
        (self.first_time, self.controls.len() as u32)
    }

    /// Takes an access that is not before the one before, whose end is an address.
    #[inline]
    pub(super) fn push(&mut self, access: &Access) {
        if self.controls.is_empty() {
            self.first_time = access.at.0;
            self.context = Context::new(self.first_time);
        }
        let context = &mut self.context;
        let mut control = kind_number(access.kind) << 4;
        let step = access.at.0 - context.at;
        if step != context.step {
            control |= STEP;
            put(&mut self.times, step);
            context.step = step;
        }
        let address = access.address;
        let is_behind = address == context.behind() && context.len > 1;
        let slot = if is_behind {
            BEHIND
        } else {
            let near = context
                .slots
                .iter()
                .position(|&slot| slot.abs_diff(address) < NEAR);
            let base = context.slots[near.unwrap_or(0)];
            let difference = address.wrapping_sub(base).cast_signed();
            put(&mut self.addresses, zigzag(difference));
            near.map_or(NONE_NEAR, |slot| slot as u8)
        };
        context.remember(slot, address);
        if (access.len, access.weight) != (context.len, context.weight) {
            control |= SHAPE;
            put(&mut self.shapes, access.len);
            put(&mut self.shapes, u64::from(access.weight));
            (context.len, context.weight) = (access.len, access.weight);
        }
        context.at = access.at.0;
        self.controls.push(control | slot);
    }

    pub(super) fn push_event(&mut self, event: &Event) {
        let at = self.controls.len();
        put(&mut self.events, (at - self.last_event) as u64);
        event.put(&mut self.events);
        self.last_event = at;
        self.event_count += 1;
    }

    /// Appends the content to `out` and begins again.
    pub(super) fn take(&mut self, out: &mut Vec<u8>) {
        put(out, self.event_count as u64);
        for column in [&self.times, &self.addresses, &self.shapes, &self.events] {
            put(out, column.len() as u64);
        }
        for column in [
            &mut self.controls,
            &mut self.times,
            &mut self.addresses,
            &mut self.shapes,
            &mut self.events,
        ] {
            out.append(column);
        }
        (self.event_count, self.last_event) = (0, 0);
    }
}

/// Takes a column of `bytes` bytes off the front.
fn column<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<Reader<'a>, WireError> {
    let (column, behind) = rest.split_at_checked(bytes).ok_or(WireError::Short)?;
    *rest = behind;
    Ok(Reader::new(column))
}

/// Reads the content of a block of `records` accesses, the first of them at `first_time`, into
/// `accesses` and `events`, each event with the number of accesses before it.
///
/// # Errors
/// If the bytes are no such content.
pub(super) fn read(
    content: &[u8],
    (first_time, records): (u64, u32),
    accesses: &mut Vec<Access>,
    events: &mut Vec<(usize, Event)>,
) -> Result<(), WireError> {
    let mut numbers = Reader::new(content);
    let event_count = numbers.small(MAX_EVENTS as u32, "the number of events")?;
    let mut lengths = [0_usize; 4];
    for length in &mut lengths {
        *length = numbers.small(MAX_CONTENT as u32, "a column's length")? as usize;
    }
    let mut rest = &content[content.len() - numbers.left()..];
    let (controls, behind) = rest
        .split_at_checked(records as usize)
        .ok_or(WireError::Short)?;
    rest = behind;
    let mut times = column(&mut rest, lengths[0])?;
    let mut addresses = column(&mut rest, lengths[1])?;
    let mut shapes = column(&mut rest, lengths[2])?;
    let mut event_reader = column(&mut rest, lengths[3])?;
    Reader::new(rest).finish()?;
    let mut context = Context::new(first_time);
    accesses.reserve(controls.len());
    for &control in controls {
        accesses.push(read_access(
            control,
            &mut context,
            (&mut times, &mut addresses, &mut shapes),
        )?);
    }
    let mut at = 0_usize;
    for _ in 0..event_count {
        at += event_reader.small(records, "an event's place")? as usize;
        if at > controls.len() {
            return Err(WireError::OutOfBounds("an event's place"));
        }
        events.push((at, Event::read(&mut event_reader)?));
    }
    for reader in [times, addresses, shapes, event_reader] {
        reader.finish()?;
    }
    if accesses
        .first()
        .is_some_and(|first| first.at.0 != first_time)
    {
        return Err(WireError::OutOfBounds("the first time"));
    }
    Ok(())
}

#[inline]
fn read_access(
    control: u8,
    context: &mut Context,
    (times, addresses, shapes): (&mut Reader<'_>, &mut Reader<'_>, &mut Reader<'_>),
) -> Result<Access, WireError> {
    if control & STEP != 0 {
        context.step = times.number()?;
    }
    let at = context.at.checked_add(context.step);
    context.at = at.ok_or(WireError::OutOfBounds("a time"))?;
    let slot = control & 15;
    let address = match slot {
        BEHIND => context.behind(),
        0..=NONE_NEAR => {
            let difference = unzigzag(addresses.number()?);
            let base = context.slots[usize::from(slot % NONE_NEAR)];
            base.wrapping_add_signed(difference)
        }
        _ => return Err(WireError::OutOfBounds("an address's slot")),
    };
    context.remember(slot, address);
    if control & SHAPE != 0 {
        context.len = shapes.number()?;
        context.weight = shapes.small(u32::MAX, "a weight")?;
    }
    let kind = match control >> 4 & 3 {
        0 => AccessKind::Any,
        1 => AccessKind::Load,
        2 => AccessKind::Store,
        _ => return Err(WireError::OutOfBounds("an access's kind")),
    };
    if context.len == 0 || address.checked_add(context.len).is_none() {
        return Err(WireError::OutOfBounds("an access's length"));
    }
    Ok(Access {
        at: Time(context.at),
        address,
        len: context.len,
        weight: context.weight,
        kind,
    })
}
