//! Data sets that people have: CIFAR's files for Python, and folders of pictures.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use assert_cmd::Command;
use datasets::cifar10;
use end_to_end::{program, refused, xtask};
use image::{Rgb, RgbImage};
use rng::{Purpose, Stream};
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

/// Pixels of an image.
const PIXELS: usize = 32 * 32;

/// Image number `index`, as `[3, 32, 32]` bytes: noise, brighter for later classes.
fn image(index: usize, class: u8) -> Vec<u8> {
    let stream = Stream::new(5, Purpose::Synthetic, index as u32);
    let noise = |at| (stream.below(at, 100) as u8) + 15 * class;
    (0..3 * PIXELS as u64).map(noise).collect()
}

/// The classes of the images of a part, in order: two of each.
fn classes(images: usize) -> impl Iterator<Item = u8> {
    (0..images).map(move |index| (10 * index / images) as u8)
}

/// Training and test images.
const IMAGES: (usize, usize) = (30, 20);

/// Writes the images as pictures, by class, with names in their order.
fn write_pictures(folder: &Path) {
    for (part, images, first) in [("train", IMAGES.0, 0), ("test", IMAGES.1, 1000)] {
        for (index, class) in classes(images).enumerate() {
            let class_folder = folder
                .join(part)
                .join(cifar10::INFO.class_names[usize::from(class)]);
            fs::create_dir_all(&class_folder).unwrap();
            let bytes = image(first + index, class);
            let picture = RgbImage::from_fn(32, 32, |x, y| {
                let pixel = (y * 32 + x) as usize;
                Rgb([0, 1, 2].map(|channel| bytes[channel * PIXELS + pixel]))
            });
            picture
                .save(class_folder.join(format!("{index:02}.png")))
                .unwrap();
        }
    }
}

/// Labels and pixels of the files of CIFAR-10, of which the first ones are those of [`IMAGES`].
fn cifar10_files() -> Vec<(Vec<u8>, Vec<u8>)> {
    let file = |images: usize, first: usize| {
        let mut labels: Vec<u8> = classes(images).collect();
        let of_class = |(index, class): (usize, &u8)| image(first + index, *class);
        let mut pixels: Vec<u8> = labels.iter().enumerate().flat_map(of_class).collect();
        labels.resize(cifar10::RECORDS, 9);
        pixels.resize(cifar10::RECORDS * 3 * PIXELS, 7);
        (labels, pixels)
    };
    let mut files: Vec<_> = (1..5).map(|_| file(0, 0)).collect();
    files.insert(0, file(IMAGES.0, 0));
    files.push(file(IMAGES.1, 1000));
    files
}

/// Writes CIFAR-10's binary version.
fn write_binary(data: &Path) {
    let folder = data.join(cifar10::FOLDER);
    fs::create_dir_all(&folder).unwrap();
    let names = cifar10::BINARY.files.iter().map(|file| file.name);
    for (name, (labels, pixels)) in names.zip(cifar10_files()) {
        let records = labels.iter().zip(pixels.chunks_exact(3 * PIXELS));
        let bytes: Vec<u8> = records
            .flat_map(|(label, pixels)| [&[*label], pixels].concat())
            .collect();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// Writes CIFAR-10's version for Python, as Python 2 does: `cPickle.dump({"data": ..., "labels": ...}, file, 2)`.
fn write_python(data: &Path) {
    let folder = data.join(cifar10::PYTHON.folder);
    fs::create_dir_all(&folder).unwrap();
    let names = cifar10::PYTHON.files.iter().map(|file| file.name);
    for (name, (labels, pixels)) in names.zip(cifar10_files()) {
        let labels: Vec<u8> = labels.iter().flat_map(|label| [b'K', *label]).collect();
        let bytes = [
            b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(",
            &labels[..],
            b"eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\0\x85U\x01b\x87Rq\x07(K\x01",
            b"M\x10\x27M\0\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\0K\x01\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
            b"\x89T",
            &(pixels.len() as u32).to_le_bytes(),
            &pixels,
            b"tbu.",
        ]
        .concat();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// Training of a small network on these images, in the folder `folder`, for two epochs.
fn train(folder: &Path, name: &str) -> Command {
    let mut command = program("trainer");
    command.current_dir(folder).args([
        "--model",
        "lenet",
        "--epochs",
        "2",
        "--batch-size",
        "10",
        "--name",
        name,
    ]);
    command
}

/// The tensors of the last weights of a run.
fn weights(folder: &Path, name: &str) -> Vec<(String, Vec<u8>)> {
    let path = folder.join("runs").join(name).join("last.safetensors");
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let tensor = |name: &str| {
        (
            name.to_owned(),
            tensors.tensor(name).unwrap().data().to_vec(),
        )
    };
    names.into_iter().map(tensor).collect()
}

fn record(folder: &Path, name: &str) -> toml::Table {
    let path = folder.join("runs").join(name).join("run.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// What is printed to standard error.
fn notes(command: &mut Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

/// A setting as a flag.
fn flag(record: &toml::Table, key: &str) -> String {
    let values = record[key].as_array().unwrap();
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    format!("--{key}={}", values.join(","))
}

#[test]
fn pictures_train_to_the_same_bits_as_files_of_cifar() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(&folder.join("pets"));
    let text = notes(train(folder, "pictures").args(["--dataset", "./pets"]));
    assert!(text.contains("30 training and 20 test images"), "{text}");
    let pictures = record(folder, "pictures");
    let [mean, std] = ["mean", "std"].map(|key| flag(&pictures, key));

    for (version, write) in [
        ("binary", write_binary as fn(&Path)),
        ("python", write_python),
    ] {
        let data = folder.join(version);
        write(&data);
        let mut files = train(folder, version);
        let limits = ["--limit-train=30", "--limit-test=20", &mean, &std];
        let text = notes(files.args(limits).arg("--data-dir").arg(&data));
        assert!(text.contains("is not that of CIFAR-10"), "{text}");
        assert_eq!(weights(folder, version), weights(folder, "pictures"));
        // 60,000 images.
        fs::remove_dir_all(data).unwrap();
    }
    let digest = |name| record(folder, name)["made_by"]["data_sha256"].clone();
    assert_eq!(digest("binary"), digest("python"));
    assert_ne!(digest("binary"), digest("pictures"));

    // With the same settings, and decoded pictures from the first run.
    let cached = fs::read_dir(folder.join("data")).unwrap().count();
    assert_eq!(cached, 1);
    notes(train(folder, "again").args(["--dataset", "./pets"]));
    assert_eq!(weights(folder, "again"), weights(folder, "pictures"));
    assert_eq!(record(folder, "again")["mean"], pictures["mean"]);
    // Also for settings that `tune` searches for a batch size.
    let mut dry_run = program("trainer");
    dry_run.current_dir(folder).args(["--model", "lenet"]);
    let dry_run = dry_run
        .args(["--dataset", "./pets", "--dry-run"])
        .assert()
        .success()
        .get_output()
        .clone();
    let settings: toml::Table = String::from_utf8(dry_run.stdout).unwrap().parse().unwrap();
    assert_eq!(settings["std"], pictures["std"]);
}

/// A PNG file of one pixel, with a colour profile that inflates to this many MiB of zeros.
#[cfg(target_os = "linux")]
fn png_with_a_profile(mib: usize) -> Vec<u8> {
    use flate2::{Compress, Compression, Crc, FlushCompress};
    // Compressed so that it can be repeated.
    let mut block = Vec::with_capacity(1 << 16);
    let mut compress = Compress::new(Compression::best(), false);
    let zeros = vec![0; 1 << 20];
    compress
        .compress_vec(&zeros, &mut block, FlushCompress::Full)
        .unwrap();
    // The Adler-32 of zeros counts them, after an empty last block.
    let adler = (((mib << 20) % 65521) << 16 | 1) as u32;
    let (start, blocks) = (b"a\0\0\x78\x9c", block.repeat(mib));
    let profile = [start, &blocks[..], b"\x03\0", &adler.to_be_bytes()].concat();
    let mut png = std::io::Cursor::new(Vec::new());
    let picture = RgbImage::new(1, 1);
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let chunk = [b"iCCP", &profile[..]].concat();
    let mut crc = Crc::new();
    crc.update(&chunk);
    // After the signature and the header.
    let (start, end) = png.get_ref().split_at(33);
    let length = (profile.len() as u32).to_be_bytes();
    [start, &length, &chunk, &crc.sum().to_be_bytes(), end].concat()
}

#[cfg(target_os = "linux")]
#[test]
fn a_colour_profile_does_not_choose_how_much_memory_it_takes() {
    use image::{ImageDecoder, codecs::png::PngDecoder};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(&folder.join("pets"));
    let small = png_with_a_profile(1);
    let mut decoder = PngDecoder::new(std::io::Cursor::new(&small)).unwrap();
    let profile = decoder.icc_profile().unwrap();
    assert_eq!(profile.map(|profile| profile.len()), Some(1 << 20));
    for (name, mib) in [("small.png", 1), ("large.png", 3 << 10)] {
        let picture = folder.join("pets/train/cat").join(name);
        fs::write(picture, png_with_a_profile(mib)).unwrap();
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 2500000; exec \"$@\"", "sh"]);
    shell.arg(end_to_end::path("trainer")).current_dir(folder);
    shell.args(["--model", "lenet", "--epochs", "1", "--threads", "1"]);
    shell.args(["--batch-size", "10"]);
    let text = notes(shell.args(["--dataset", "./pets"]));
    // With both.
    assert!(text.contains("32 training and"), "{text}");
}

#[test]
fn refused_commands_decode_no_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(&folder.join("pets"));
    notes(train(folder, "taken").args(["--dataset", "synthetic", "--limit-train", "10"]));
    let taken = Path::new("runs").join("taken");
    let taken = taken.display();
    for (name, flag, expected) in [
        (
            "taken",
            "--threads=1",
            &*format!("the run `{taken}` exists"),
        ),
        ("a", "--limit-train=5", "the batch size 10 is larger"),
        ("a", "--limit-train=31", "there are only 30 images"),
        ("a", "--limit-test=21", "there are only 20 images"),
        ("a", "--validation=30", "--validation 30: cannot hold out"),
        ("a", "--overfit-batches=4", "there are only 30 images"),
        ("a", "--init=none", "cannot read `none`"),
    ] {
        let mut command = train(folder, name);
        refused(command.args(["--dataset", "./pets", flag]), 2, &[expected]);
        assert!(!folder.join("data").exists(), "{flag}");
    }
}

#[test]
fn a_limit_that_leaves_classes_out_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(&folder.join("pets"));
    let mut command = train(folder, "a");
    command.args(["--dataset", "./pets"]);
    command.args(["--limit-train", "10", "--limit-test", "10"]);
    let printed = notes(&mut command);
    let expected = "6 of 10 classes have no training images";
    assert!(printed.contains(expected), "{printed}");
}

#[test]
fn a_run_goes_on_where_its_pictures_are_now() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(&folder.join("pets"));
    notes(train(folder, "whole").args(["--dataset", "./pets"]));
    notes(train(folder, "a").args(["--dataset", "./pets", "--stop-after", "1"]));
    fs::rename(folder.join("pets"), folder.join("moved")).unwrap();
    let resume = || {
        let mut command = program("trainer");
        command.current_dir(folder).args(["--resume", "a"]);
        command
    };
    let run = Path::new("runs").join("a");
    let settings = run.join("run.toml");
    let missing = format!(
        "--dataset (`{}`): the folder `./pets` does not exist",
        settings.display()
    );
    refused(&mut resume(), 2, &[&missing]);
    refused(
        resume().args(["--dataset", "synthetic"]),
        2,
        &["dataset", "./pets"],
    );
    // Other pictures.
    write_pictures(&folder.join("other"));
    fs::remove_file(folder.join("other/train/cat/09.png")).unwrap();
    refused(
        resume().args(["--dataset", "./other"]),
        1,
        &["was made with other data"],
    );
    // The same pictures, of a class with another name.
    let rename = |from: &str, to: &str| {
        for part in ["train", "test"] {
            let part = folder.join("moved").join(part);
            fs::rename(part.join(from), part.join(to)).unwrap();
        }
    };
    rename("cat", "cats");
    refused(
        resume().args(["--dataset", "./moved"]),
        1,
        &["made with the class `cat`, which is `cats`"],
    );
    rename("cats", "cat");
    notes(resume().args(["--dataset", "./moved"]));
    assert_eq!(weights(folder, "a"), weights(folder, "whole"));
    assert_eq!(record(folder, "a")["dataset"].as_str(), Some("./moved"));
    // `whole` is of `./pets`.
    let verify = || {
        let mut command = xtask("verify");
        command.current_dir(folder).arg("whole");
        command
    };
    refused(&mut verify(), 2, &["the folder `./pets` does not exist"]);
    verify().args(["--dataset", "./moved"]).assert().success();

    // The checkpoint's classes are the folder's.
    let checkpoint = "runs/a/last.safetensors";
    let evaluate = |file| {
        let mut command = program("trainer");
        command
            .current_dir(folder)
            .args(["eval", "--checkpoint", file]);
        command
    };
    // No data set is asked for that would not serve.
    refused(
        evaluate(checkpoint).args(["--dataset", "cifar100"]),
        2,
        &["trained on other classes", "--dataset cifar100 has (100: "],
    );
    refused(
        &mut evaluate("runs/a"),
        2,
        &[
            "is a folder",
            run.join("best.safetensors").to_str().unwrap(),
        ],
    );
    let mut eval = program("trainer");
    eval.current_dir(folder)
        .args(["eval", "--checkpoint", checkpoint, "--dataset", "./moved"]);
    let output = eval.assert().success().get_output().clone();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("on 20 test images") && text.contains("automobile"),
        "{text}"
    );
    fs::rename(
        folder.join("moved/train/cat"),
        folder.join("moved/train/cats"),
    )
    .unwrap();
    fs::rename(
        folder.join("moved/test/cat"),
        folder.join("moved/test/cats"),
    )
    .unwrap();
    refused(&mut eval, 2, &["was trained on other classes"]);
}

#[test]
fn pictures_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pets = folder.join("pets");
    write_pictures(&pets);
    notes(train(folder, "good").args(["--dataset", "pets"]));
    fs::write(pets.join("train/cat/damaged.png"), "").unwrap();
    let picture = fs::read(pets.join("train/cat/09.png")).unwrap();
    fs::write(
        pets.join("test/dog/cut.PNG"),
        &picture[..picture.len() - 20],
    )
    .unwrap();
    fs::write(pets.join("train/cat/readme.txt"), "").unwrap();
    let message = refused(
        train(folder, "bad").args(["--dataset", "pets"]),
        1,
        &[
            "2 pictures of 52 in `pets` cannot be read",
            "damaged.png",
            "cut.PNG",
            "--skip-unreadable",
        ],
    );
    assert!(message.contains("it is incomplete"), "{message}");
    assert!(!folder.join("runs/bad").exists());
    let text = notes(train(folder, "skipped").args(["--dataset", "pets", "--skip-unreadable"]));
    assert!(
        text.contains("2 pictures cannot be read and are left out"),
        "{text}"
    );
    assert!(text.contains("1 file in `pets`"), "{text}");
    assert_eq!(weights(folder, "skipped"), weights(folder, "good"));
    let record = record(folder, "skipped");
    assert_eq!(record["skip_unreadable"].as_bool(), Some(true));
    assert_eq!(record["made_by"]["skipped_pictures"].as_integer(), Some(2));
}

#[test]
fn folders_without_test_pictures_hold_some_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(folder);
    let text = notes(train(folder, "a").args(["--dataset", "./train"]));
    assert!(text.contains("a sixth of each class is held out"), "{text}");
    assert!(
        text.contains("20 training and 10 test images (classes: "),
        "{text}"
    );
    let made_by = &record(folder, "a")["made_by"];
    assert_eq!(made_by["test_split_seed"].as_integer(), Some(0));
    refused(
        train(folder, "b").args(["--dataset", "./train/cat"]),
        1,
        &["`./train/cat` has 0 class folders"],
    );
    refused(
        train(folder, "b").args(["--dataset", "cifar11"]),
        2,
        &["cifar11", "`cifar10`", "a folder of pictures"],
    );
}

#[test]
fn cifar100_has_its_own_normalisation() {
    let dry_run = |arguments: &[&str]| -> toml::Table {
        let mut command = program("trainer");
        command
            .args(["--model", "lenet", "--dry-run"])
            .args(arguments);
        let output = command.assert().success().get_output().clone();
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    };
    let red = |settings: &toml::Table| settings["mean"][0].as_float();
    assert_eq!(red(&dry_run(&["--dataset", "cifar100"])), Some(0.5071));
    let given = dry_run(&["--dataset", "cifar100", "--mean", "0.1,0.2,0.3"]);
    assert_eq!(red(&given), Some(0.1));
    assert_eq!(given["std"][0].as_float(), Some(0.2673));
    assert_eq!(red(&dry_run(&[])), Some(0.485));
}
