//! A report as Markdown.

use crate::comparison::{Comparison, network_name};
use crate::contents::{self, PredictedImage, Table};
use crate::{TIMES_BEGIN, TIMES_END};
use std::fmt::Write;

/// The report, for a terminal or a repository. `written` is the date, which is shown in the block of times.
#[must_use]
pub fn markdown(comparison: &Comparison, written: &str) -> String {
    let mut text = format!("# {}\n\n", contents::title(comparison));
    paragraph(&mut text, &contents::setting(comparison));
    text += "## Results compared with the post's\n\n";
    table(&mut text, &contents::results(comparison));
    list(&mut text, &contents::ratios(comparison));

    let _ = writeln!(text, "<!-- {TIMES_BEGIN} -->\n\n## Time\n");
    table(&mut text, &contents::times(comparison));
    list(&mut text, &contents::time_ratios(comparison));
    for run in contents::one_of_each_network(comparison) {
        if let Some(times) = contents::layer_times(run) {
            let _ = writeln!(
                text,
                "Mean time of the layers in a training step of {}:\n",
                run.name
            );
            table(&mut text, &times);
        }
    }
    let _ = writeln!(text, "Written on {written}.\n\n<!-- {TIMES_END} -->\n");

    if comparison.groups.len() > 1 {
        text += "## Is the difference significant?\n\n";
        list(&mut text, &contents::tests(comparison));
    }
    text += "## Overfitting\n\n";
    list(
        &mut text,
        &comparison
            .groups
            .iter()
            .filter_map(contents::overfitting)
            .collect::<Vec<_>>(),
    );
    if let Some(classes) = contents::classes(comparison) {
        text += "## Accuracy per class\n\n";
        table(&mut text, &classes);
    }
    images(
        &mut text,
        "Where the networks disagree",
        &contents::disagreements(comparison),
    );
    images(
        &mut text,
        "The most confident mistakes",
        &contents::mistakes(comparison),
    );
    let networks = contents::one_of_each_network(comparison);
    if !networks.is_empty() {
        text += "## Layers\n\n";
    }
    for run in networks {
        if let Some(layers) = contents::layers(run) {
            let _ = writeln!(text, "### {}\n", network_name(&run.settings.model));
            table(&mut text, &layers);
        }
    }
    text += "## Settings and versions\n\n";
    table(&mut text, &contents::provenance(comparison));
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn paragraph(text: &mut String, sentences: &[String]) {
    if !sentences.is_empty() {
        let _ = writeln!(text, "{}\n", sentences.join(" "));
    }
}

fn list(text: &mut String, sentences: &[String]) {
    for sentence in sentences {
        let _ = writeln!(text, "- {sentence}");
    }
    if !sentences.is_empty() {
        text.push('\n');
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A table with aligned columns, so that it is readable in a terminal.
fn table(text: &mut String, table: &Table) {
    let rows: Vec<Vec<String>> = std::iter::once(&table.header)
        .chain(&table.rows)
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<_> = (0..table.header.len()).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let room = " ".repeat(width - cell.chars().count());
            let _ = if column == 0 {
                write!(text, "| {cell}{room} ")
            } else {
                write!(text, "| {room}{cell} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let rule = "-".repeat(*width);
                let _ = if column == 0 {
                    write!(text, "| {rule} ")
                } else {
                    write!(text, "| {}: ", &rule[1..])
                };
            }
            text.push_str("|\n");
        }
    }
    text.push('\n');
}

fn images(text: &mut String, heading: &str, kinds: &[(String, Vec<PredictedImage>)]) {
    if kinds.iter().all(|(_, images)| images.is_empty()) {
        return;
    }
    let _ = writeln!(
        text,
        "## {heading}\n\nThe pictures are in the HTML report.\n"
    );
    for (kind, images) in kinds.iter().filter(|(_, images)| !images.is_empty()) {
        let _ = writeln!(text, "### {kind}\n");
        let mut rows = Table::new(["test image", "label"]);
        rows.header.extend(
            images[0]
                .predicted
                .iter()
                .map(|(label, ..)| format!("prediction of {label}")),
        );
        for image in images {
            let mut row = vec![image.number.to_string(), image.class.clone()];
            row.extend(
                image
                    .predicted
                    .iter()
                    .map(|(_, class, probability)| format!("{class} {:.1} %", 100.0 * probability)),
            );
            rows.rows.push(row);
        }
        table(text, &rows);
    }
}
