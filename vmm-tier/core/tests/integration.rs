//! The integration tests of this crate, in one program: a program for each file takes longer to build.
//! Each test file is named here.

#[path = "common/accesses.rs"]
mod accesses;
mod common;
mod exposition;
#[path = "common/lab.rs"]
mod lab;

mod arbiter;
mod arbiter_history;
mod arbiter_properties;
mod dual_heap;
mod dual_heap_fronts;
mod dual_heap_model;
mod engine;
mod engine_bias;
mod engine_counts;
mod engine_cpusets;
mod engine_demand;
mod engine_folios;
mod engine_grids;
mod engine_nodes;
mod engine_orders;
mod engine_pins;
mod engine_pools;
mod engine_random;
mod engine_rebind;
mod engine_trouble;
mod engine_views;
mod heat;
mod map_fixtures;
mod map_probing;
mod open_metrics;
mod quota;
mod wire;
