//! The integration tests of this crate, in one program: a program for each file takes longer to build.
//! Each test file is named here.

mod ping_pong;
mod policies;
mod sampling;
mod trace;
mod trace_fuzz;
mod workloads;
