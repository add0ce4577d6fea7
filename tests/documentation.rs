//! Generated documentation is up to date.

use end_to_end::xtask;

#[test]
fn the_reference_of_commands_and_flags_is_up_to_date() {
    xtask("docs").arg("--check").assert().success();
}
