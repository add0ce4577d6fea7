//! Reports on the published runs, whose records are of earlier versions.

#![allow(clippy::unwrap_used)]

use report::{Comparison, TIMES_BEGIN, TIMES_END, write_report};
use run::Run;
use std::fs;
use std::path::Path;

/// The runs of `data/results/compare-10000`.
fn runs() -> Vec<Run> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/results/compare-10000");
    let mut folders: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
        .iter()
        .map(|folder| Run::read(folder).unwrap())
        .collect()
}

#[test]
fn a_report_on_published_runs_is_written() {
    let comparison = Comparison::new(runs()).unwrap();
    let labels: Vec<_> = comparison.groups.iter().map(|group| &group.label).collect();
    assert_eq!(labels, ["AlexNet", "SmallAlexNet"]);
    assert!(comparison.groups.iter().all(|group| group.runs.len() == 2));
    let folder = tempfile::tempdir().unwrap();
    let [markdown, html] = write_report(folder.path(), &comparison).unwrap();
    let markdown = fs::read_to_string(markdown).unwrap();
    for part in [
        "# AlexNet and SmallAlexNet on CIFAR-10\n",
        "4 runs of 6 epochs each, on 10,000 training images of CIFAR-10",
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
    // Earlier versions did not record layers.
    assert!(!markdown.contains("## Layers"), "{markdown}");
    let html = fs::read_to_string(html).unwrap();
    assert!(html.contains("<svg") && !html.contains("<script"));
}
