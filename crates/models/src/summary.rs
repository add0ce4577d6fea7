//! The table of layers, as the `torchsummary` package prints it and the post shows it.

use crate::architecture::{Architecture, CLASSES, IMAGE};
use std::fmt::Write;

/// The table of layers with output shapes and parameter counts, and the sizes in MB (2^20 bytes)
/// of one image's input, of its activations (once forward, once backward) and of the parameters,
/// in `f32`. Ends with a line break.
#[must_use]
pub fn summary(architecture: Architecture) -> String {
    let rule = "-".repeat(64);
    let mut table = format!(
        "{rule}\n{}\n{}\n",
        row("Layer (type)", "Output Shape", "Param #"),
        "=".repeat(64)
    );
    let mut shape = IMAGE.to_vec();
    let mut outputs = 0;
    let mut line = |number: usize, name: &str, shape: &[usize], parameters: usize| {
        let dimensions: String = shape.iter().map(|size| format!(", {size}")).collect();
        let label = format!("{name}-{number}");
        table += &row(&label, &format!("[-1{dimensions}]"), &grouped(parameters));
        table.push('\n');
        outputs += shape.iter().product::<usize>();
    };
    let mut layers = 0;
    for layer in architecture.layers() {
        shape = layer.output_shape(&shape);
        layers += 1;
        line(layers, layer.type_name(), &shape, layer.parameter_count());
    }
    line(layers + 1, architecture.class_name(), &[CLASSES], 0);

    let megabytes = |numbers: usize| numbers as f64 * 4.0 / f64::from(1 << 20);
    let input = megabytes(IMAGE.iter().product());
    let activations = megabytes(2 * outputs);
    let parameters = megabytes(architecture.parameter_count());
    let count = grouped(architecture.parameter_count());
    let _ = write!(
        table,
        "{}\nTotal params: {count}\nTrainable params: {count}\nNon-trainable params: 0\n{rule}\n\
         Input size (MB): {input:.2}\n\
         Forward/backward pass size (MB): {activations:.2}\n\
         Params size (MB): {parameters:.2}\n\
         Estimated Total Size (MB): {:.2}\n{rule}\n",
        "=".repeat(64),
        input + activations + parameters,
    );
    table
}

fn row(layer: &str, shape: &str, parameters: &str) -> String {
    format!("{layer:>20}  {shape:>25} {parameters:>15}")
}

/// A number with commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_the_posts() {
        assert_eq!(
            summary(Architecture::AlexNet),
            include_str!("../tests/post/alexnet.txt")
        );
        assert_eq!(
            summary(Architecture::SmallAlexNet),
            include_str!("../tests/post/small_alexnet.txt")
        );
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(58_292_074), "58,292,074");
    }
}
