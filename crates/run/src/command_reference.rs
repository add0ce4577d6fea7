//! The reference of a program's commands and flags, as Markdown.

use clap::{Arg, Command};

/// The reference of `command` and its subcommands, without hidden ones: for each its description, its usage, and a table
/// of flags under every heading of its help text.
#[must_use]
pub fn markdown(mut command: Command) -> String {
    command.build();
    let mut text = String::new();
    section(&command, &mut text);
    text
}

fn section(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    *text += &format!("\n## `{name}`\n");
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        *text += &format!("\n{about}\n");
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").lines();
    let usage: Vec<_> = usage.map(str::trim).collect();
    *text += &format!("\n```text\n{}\n```\n", usage.join("\n"));
    let documented =
        |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let mut tables: Vec<(&str, String)> = Vec::new();
    for arg in command.get_arguments().filter(documented) {
        let heading = heading(arg);
        if tables.iter().all(|(known, _)| *known != heading) {
            tables.push((heading, format!("\n| {heading} | |\n|---|---|\n")));
        }
        let (spelling, description) = (cell(&spelling(arg)), cell(&description(arg)));
        for (_, rows) in tables.iter_mut().filter(|(known, _)| *known == heading) {
            *rows += &format!("| `{spelling}` | {description} |\n");
        }
    }
    text.extend(tables.into_iter().map(|(_, rows)| rows));
    let visible = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    for subcommand in command.get_subcommands().filter(visible) {
        section(subcommand, text);
    }
}

/// The heading under which the help text lists an argument.
fn heading(arg: &Arg) -> &str {
    let default = if arg.is_positional() {
        "Arguments"
    } else {
        "Options"
    };
    arg.get_help_heading().unwrap_or(default)
}

/// An argument as it is typed: `--epochs <N>`.
fn spelling(arg: &Arg) -> String {
    let values = match arg.get_value_names() {
        Some(names) if arg.get_action().takes_values() => {
            names.iter().map(|name| format!("<{name}>")).collect()
        }
        _ => Vec::new(),
    };
    let flag = arg.get_long().map(|long| format!("--{long}"));
    flag.into_iter().chain(values).collect::<Vec<_>>().join(" ")
}

/// Help text, default and possible values.
fn description(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(ToString::to_string).unwrap_or_default();
    if !arg.get_action().takes_values() {
        return text;
    }
    let defaults = arg.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() {
        text += &format!(" [default: {}]", defaults.join(","));
    }
    let values = arg.get_possible_values();
    for value in values.iter().filter(|value| !value.is_hide_set()) {
        let help = value.get_help();
        let help = help.map(|help| format!(": {help}")).unwrap_or_default();
        text += &format!("\n`{}`{help}", value.get_name());
    }
    text
}

/// Text inside a cell of a table.
fn cell(text: &str) -> String {
    text.replace("\n\n", "\n")
        .replace('\n', "<br>")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, Subcommand, ValueEnum};

    /// Trains
    #[allow(dead_code)]
    #[derive(Parser)]
    #[command(name = "program")]
    struct Args {
        /// Passes over the images.
        #[arg(long, value_name = "N|all", default_value = "5", help_heading = "Data")]
        epochs: String,
        /// The flip.
        #[arg(long)]
        flip: Option<Flip>,
        #[arg(long, hide = true)]
        secret: bool,
        #[command(subcommand)]
        command: Option<Commands>,
    }

    #[derive(Clone, ValueEnum)]
    enum Flip {
        /// By chance.
        Random,
        Never,
    }

    #[allow(dead_code)]
    #[derive(Subcommand)]
    enum Commands {
        /// Evaluates.
        Eval {
            /// The file.
            file: String,
        },
        #[command(hide = true)]
        Internal,
    }

    #[test]
    fn commands_flags_defaults_and_values_are_listed() {
        let text = markdown(<Args as clap::CommandFactory>::command());
        let expected = "
## `program`

Trains

```text
program [OPTIONS] [COMMAND]
```

| Data | |
|---|---|
| `--epochs <N\\|all>` | Passes over the images [default: 5] |

| Options | |
|---|---|
| `--flip <FLIP>` | The flip<br>`random`: By chance<br>`never` |

## `program eval`

Evaluates

```text
program eval <FILE>
```

| Arguments | |
|---|---|
| `<FILE>` | The file |
";
        assert_eq!(text, expected);
    }
}
