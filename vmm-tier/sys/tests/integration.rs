//! The integration tests of this crate, in one program: a program for each file takes longer to build.
//! Each test file is named here.

mod host;
mod huge_pages;
mod ibs;
mod mempolicy;
mod perf;
mod records;
