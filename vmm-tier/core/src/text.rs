//! What people write and read: sizes, durations, counts and tables in plain text.

pub mod duration;
pub mod size;
pub mod table;
