//! The table of data sets. A data set is a file of this crate and an entry here.

use crate::info::DatasetInfo;
use std::str::FromStr;

/// The data sets.
const DATASETS: &[DatasetInfo] = &[
    crate::cifar10::INFO,
    crate::cifar100::INFO,
    crate::synthetic::INFO,
];

impl DatasetInfo {
    /// All data sets.
    pub const ALL: &'static [Self] = DATASETS;
}

/// A name that no data set has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a data set: use one of {names}, or a folder of pictures", names = names())]
pub struct UnknownDataset(String);

fn names() -> String {
    let names: Vec<_> = DATASETS
        .iter()
        .map(|info| format!("`{}`", info.name))
        .collect();
    names.join(", ")
}

impl FromStr for DatasetInfo {
    type Err = UnknownDataset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = DATASETS.iter().find(|info| info.name == name);
        known
            .copied()
            .ok_or_else(|| UnknownDataset(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_parsed_by_name() {
        for info in DatasetInfo::ALL {
            assert_eq!(info.name.parse(), Ok(*info));
        }
        let error = "mnist".parse::<DatasetInfo>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`mnist` is not a data set: use one of `cifar10`, `cifar100`, `synthetic`, or a folder of pictures"
        );
    }
}
