//! CIFAR-100: 50,000 training and 10,000 test images of 100 classes, which its files call fine ones, beside 20 coarse ones.
//! The [official archives](https://www.cs.toronto.edu/~kriz/cifar.html) are a binary version and one for Python, which
//! torchvision fetches.

#[cfg(feature = "tensors")]
use crate::cifar;
use crate::cifar::{Archive, Format, ImageFile};
use crate::info::{Channels, DatasetInfo, Images};

/// What is known of CIFAR-100 without its images.
pub const INFO: DatasetInfo = DatasetInfo {
    name: "cifar100",
    display_name: "CIFAR-100",
    class_names: CLASS_NAMES,
    images: Images {
        training: TRAINING_IMAGES,
        test: TEST_IMAGES,
    },
    channels: Some(CHANNELS),
    max_generated: None,
    archives: &[&BINARY, &PYTHON],
    #[cfg(feature = "tensors")]
    load: cifar::load,
};

/// Those of the training images, as they are commonly given to torchvision's `Normalize`.
const CHANNELS: Channels = Channels {
    mean: [0.5071, 0.4865, 0.4409],
    std: [0.2673, 0.2564, 0.2762],
};

const TRAINING_IMAGES: usize = 50_000;
const TEST_IMAGES: usize = 10_000;

/// The number of coarse classes.
const COARSE_CLASSES: usize = 20;

/// The binary version.
pub const BINARY: Archive = Archive {
    file_name: "cifar-100-binary.tar.gz",
    // Those of `datasets/cifar100.rb` of the gem torchvision, with those of the files.
    sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    bytes: 168_513_733,
    folder: "cifar-100-binary",
    files: &[
        ImageFile {
            name: "train.bin",
            images: TRAINING_IMAGES,
            checksum: "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        },
        ImageFile {
            name: "test.bin",
            images: TEST_IMAGES,
            checksum: "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        },
    ],
    names: "fine_label_names.txt",
    format: Format::Binary {
        labels: &[COARSE_CLASSES, CLASS_NAMES.len()],
    },
    class_names: CLASS_NAMES,
};

/// The version for Python.
pub const PYTHON: Archive = Archive {
    file_name: "cifar-100-python.tar.gz",
    // That of `keras/datasets/cifar100.py`.
    sha256: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    bytes: 169_001_437,
    folder: "cifar-100-python",
    // The checksums of `torchvision/datasets/cifar.py`.
    files: &[
        ImageFile {
            name: "train",
            images: TRAINING_IMAGES,
            checksum: "16019d7e3df5f24257cddd939b257f8d",
        },
        ImageFile {
            name: "test",
            images: TEST_IMAGES,
            checksum: "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
    ],
    names: "meta",
    format: Format::Python {
        labels: "fine_labels",
        names: "fine_label_names",
    },
    class_names: CLASS_NAMES,
};

const CLASS_NAMES: &[&str] = &[
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
];
