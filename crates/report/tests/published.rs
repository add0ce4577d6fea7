//! A report on published runs. They have no predictions or layers, and some are of earlier versions.

#![allow(clippy::unwrap_used)]

use report::{Comparison, TIMES_BEGIN, TIMES_END, write_report};
use run::Run;
use std::fs;
use std::path::Path;

/// The runs of recipe `sprint` in `f32` for eight epochs.
fn sprint_runs() -> Vec<Run> {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/results");
    [
        "alexnet-sprint-seed0",
        "alexnet-sprint-seed1",
        "small-alexnet-sprint-seed0",
        "small-alexnet-sprint-seed1",
        "small-alexnet-sprint-seed2",
    ]
    .map(|name| Run::read(&results.join(name)).unwrap())
    .into()
}

#[test]
fn a_report_on_published_runs_is_written() {
    let comparison = Comparison::new(sprint_runs()).unwrap();
    let labels: Vec<_> = comparison.groups.iter().map(|group| &group.label).collect();
    assert_eq!(labels, ["AlexNet", "SmallAlexNet"]);
    let runs: Vec<_> = comparison
        .groups
        .iter()
        .map(|group| group.runs.len())
        .collect();
    assert_eq!(runs, [2, 3]);
    let folder = tempfile::tempdir().unwrap();
    let [markdown, html] = write_report(folder.path(), &comparison).unwrap();
    let markdown = fs::read_to_string(markdown).unwrap();
    for part in [
        "# AlexNet and SmallAlexNet on CIFAR-10\n",
        "5 runs of 8 epochs each, on 50,000 training images of CIFAR-10",
        "| parameters ",
        "58,292,074",
        "Over 2 seeds",
        "| lr scheduler ",
        TIMES_BEGIN,
        TIMES_END,
    ] {
        assert!(markdown.contains(part), "{part} is not in {markdown}");
    }
    // Where the data are on this machine says nothing about the runs.
    assert!(!markdown.contains("data dir"), "{markdown}");
    // Layers are not published.
    assert!(!markdown.contains("## Layers"), "{markdown}");
    let html = fs::read_to_string(html).unwrap();
    assert!(html.contains("<svg") && !html.contains("<script"));
}
