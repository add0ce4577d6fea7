//! The settings of a training run, and the files in its folder, as types: what the trainer writes, and reports and
//! `xtask` read. It knows neither tensors nor HTML.
