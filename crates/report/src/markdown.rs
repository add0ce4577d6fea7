//! A report as Markdown.

use crate::comparison::{Comparison, network_name};
use crate::contents::{self, Images, Table};
use crate::{REPORT_SVG, TIMES_BEGIN, TIMES_END};
use std::iter;

/// The report, for a terminal or a repository. `written` is the date, which is shown in the block of times.
#[must_use]
pub fn markdown(comparison: &Comparison, written: &str) -> String {
    let networks = contents::one_of_each_network(comparison);
    let groups = &comparison.groups;
    let mut text = format!(
        "# {}\n\n{}\n\n## {}\n\n{}{}<!-- {TIMES_BEGIN} -->\n\n## Time\n\n{}{}",
        contents::title(comparison),
        escaped(&contents::setting(comparison).join(" ")),
        contents::results_heading(comparison),
        table(&contents::results(comparison)),
        list(contents::ratios(comparison)),
        table(&contents::times(comparison)),
        list(
            [
                contents::time_ratios(comparison),
                contents::sessions(comparison)
            ]
            .concat()
        ),
    );
    for run in &networks {
        if let Some(times) = contents::layer_times(run) {
            text += &format!(
                "Mean time of the layers in a training step of {}:\n\n{}",
                escaped(&run.name),
                table(&times)
            );
        }
    }
    text += &format!("Written on {written}.\n\n<!-- {TIMES_END} -->\n\n");
    if groups.len() > 1 {
        let tests = list(contents::tests(comparison));
        text += &format!("## Is the difference significant?\n\n{tests}");
    }
    text += &format!(
        "## Curves\n\n![Training and test loss and accuracy by epoch]({REPORT_SVG})\n\nA line for each run. {}\n\n",
        contents::MEASURED
    );
    let overfitting = groups.iter().filter_map(contents::overfitting);
    text += &format!("### Where overfitting begins\n\n{}", list(overfitting));
    if let Some(classes) = contents::classes(comparison) {
        let heading = contents::classes_heading(comparison);
        text += &format!("## {heading}\n\n{}", table(&classes));
    }
    let disagreements = contents::disagreements(comparison);
    text += &images("Where the networks disagree", &disagreements);
    text += &images(
        "The most confident mistakes",
        &contents::mistakes(comparison),
    );
    if !networks.is_empty() {
        text += "## Layers\n\n";
    }
    for run in networks {
        if let Some(layers) = contents::layers(run) {
            let network = network_name(&run.settings.model);
            text += &format!("### {network}\n\n{}", table(&layers));
        }
    }
    let provenance = table(&contents::provenance(comparison));
    text += &format!("## Settings and versions\n\n{}\n", provenance.trim_end());
    text
}

fn list(sentences: impl IntoIterator<Item = String>) -> String {
    let items = sentences
        .into_iter()
        .map(|sentence| format!("- {}\n", escaped(&sentence)));
    match items.collect::<String>() {
        items if items.is_empty() => items,
        items => items + "\n",
    }
}

/// Text that may come from a record, on one line and without HTML, code and links.
fn escaped(text: &str) -> String {
    let mut rest = text.chars().peekable();
    let mut escaped = String::new();
    while let Some(c) = rest.next() {
        let next = rest.peek().copied().unwrap_or(' ');
        let is_markup = match c {
            '<' => next.is_ascii_alphabetic() || "/!?".contains(next),
            '`' => true,
            '\\' => next.is_ascii_punctuation(),
            '(' => escaped.ends_with(']'),
            _ => false,
        };
        if is_markup {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { ' ' } else { c });
    }
    escaped
}

fn cell(text: &str) -> String {
    escaped(text).replace('|', "\\|")
}

/// A table with aligned columns, so that it is readable in a terminal.
fn table(table: &Table) -> String {
    let rows = iter::once(&table.header).chain(&table.rows);
    let rows: Vec<Vec<String>> = rows
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    let widths: Vec<_> = (0..table.header.len()).map(width).collect();
    let rules = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => "-".repeat(*width),
            _ => "-".repeat(width - 1) + ":",
        });
    let rules: Vec<_> = rules.collect();
    let (header, body) = rows.split_at(1);
    let mut text = String::new();
    for row in header.iter().chain([&rules]).chain(body) {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("| {cell:width$} "),
                _ => format!("| {cell:>width$} "),
            };
        }
        text += "|\n";
    }
    text + "\n"
}

fn images(heading: &str, kinds: &[Images]) -> String {
    let kinds: Vec<_> = kinds
        .iter()
        .filter(|(_, images)| !images.is_empty())
        .collect();
    if kinds.is_empty() {
        return String::new();
    }
    let mut text = format!("## {heading}\n\nThe pictures are in the HTML report.\n\n");
    for (kind, images) in kinds {
        let labels = images[0].predicted.iter();
        let labels = labels.map(|(label, ..)| format!("prediction of {label}"));
        let mut rows = Table::new("test image", iter::once("label".to_owned()).chain(labels));
        for image in images {
            let predicted = image.predicted.iter();
            let predicted = predicted
                .map(|(_, class, probability)| format!("{class} {:.1} %", 100.0 * probability));
            let cells = iter::once(image.class.clone()).chain(predicted);
            rows.row(image.index.to_string(), cells.map(Some));
        }
        text += &format!("### {kind}\n\n{}", table(&rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_records_is_no_markup() {
        for (text, expected) in [
            ("[0.5, 0.25] (p < 0.01)", "[0.5, 0.25] (p < 0.01)"),
            ("<script>a</script>\n# b", "\\<script>a\\</script> # b"),
            ("\\<b>", "\\\\\\<b>"),
            ("[a](http://b) `c`", "[a]\\(http://b) \\`c\\`"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        assert_eq!(cell("a|b"), "a\\|b");
    }
}
