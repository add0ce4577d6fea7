//! The table of layers in the format of the `torchsummary` package, as in the post.

use crate::architecture::{Architecture, IMAGE, NamedLayer};
use crate::layer::Layer;
use std::fmt::Write;

/// The table of layers with output shapes and parameter counts, and the sizes in MB (2^20 bytes) of one image, of its
/// activations (forward and backward) and of the parameters, in `f32`. Ends with a line break.
///
/// As in `torchsummary`, only modules are listed: flattening is none. With `frozen_features` the parameters before the first
/// linear layer are not trainable.
#[must_use]
pub fn summary(architecture: Architecture, frozen_features: bool) -> String {
    let rule = "-".repeat(64);
    let mut table = format!(
        "{rule}\n{}\n{}\n",
        row("Layer (type)", "Output Shape", "Param #"),
        "=".repeat(64)
    );
    let mut outputs = 0;
    let mut lines = 0;
    let mut line = |name: &str, shape: &[usize], parameters: usize| {
        lines += 1;
        let dimensions: String = shape.iter().map(|size| format!(", {size}")).collect();
        let label = format!("{name}-{lines}");
        table += &row(&label, &format!("[-1{dimensions}]"), &grouped(parameters));
        table.push('\n');
        outputs += shape.iter().product::<usize>();
    };
    for NamedLayer { layer, output, .. } in architecture.layers() {
        if layer != Layer::Flatten {
            line(layer.type_name(), &output, layer.parameter_count());
        }
    }
    line(architecture.display_name, &[architecture.num_classes], 0);

    let megabytes = |elements: usize| elements as f64 * 4.0 / f64::from(1 << 20);
    let input = megabytes(IMAGE.iter().product());
    let activations = megabytes(2 * outputs);
    let parameters = megabytes(architecture.parameter_count());
    let frozen = match frozen_features {
        true => architecture.feature_parameter_count(),
        false => 0,
    };
    let trainable = grouped(architecture.parameter_count() - frozen);
    let (count, frozen) = (grouped(architecture.parameter_count()), grouped(frozen));
    let _ = write!(
        table,
        "{}\nTotal params: {count}\nTrainable params: {trainable}\nNon-trainable params: {frozen}\n{rule}\n\
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

/// A number with commas between groups of three digits: `58,292,074`.
#[must_use]
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_match_torchsummary() {
        for (name, expected) in [
            ("alexnet", include_str!("../tests/post/alexnet.txt")),
            (
                "small-alexnet",
                include_str!("../tests/post/small_alexnet.txt"),
            ),
            ("lenet", include_str!("../tests/torchsummary/lenet.txt")),
        ] {
            assert_eq!(summary(name.parse().unwrap(), false), expected);
        }
        // The convolutions of LeNet: 6 (3 25 + 1) + 16 (6 25 + 1).
        let frozen = summary("lenet".parse().unwrap(), true);
        let expected = "Trainable params: 59,134\nNon-trainable params: 2,872\n";
        assert!(frozen.contains(expected), "{frozen}");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(58_292_074), "58,292,074");
    }
}
