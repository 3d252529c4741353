//! The integration tests of this crate, in one program: a program for each file takes longer to build.
//! Each test file is named here.

mod support;

mod client;
mod codec;
mod fixtures;
mod out_of_band;
mod proxy;
mod real_clients;
mod real_qemu;
mod server;
