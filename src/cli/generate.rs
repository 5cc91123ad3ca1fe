//! The manual page and the shell completions, written by the program they describe.
//!
//! Packages call `warmroute generate --dir DIR` when they are built. Commands and options come from
//! the command line's own definition, so that neither page nor completions can lag behind it; what
//! a definition cannot say (signals, files, examples) stands here. One page for the program with all
//! its commands, as an operator searches one page.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{Arg, Args, Command, ValueEnum};
use clap_complete::aot::{Bash, Fish, Zsh, generate};
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};

const NAME: &str = "warmroute";
/// System administration.
const SECTION: &str = "8";

/// What to generate, and where to.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What goes to stdout
    #[arg(value_enum, required_unless_present = "dir", conflicts_with = "dir")]
    piece: Option<Piece>,
    /// All of them, into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// One generated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Piece {
    Man,
    CompletionsBash,
    CompletionsZsh,
    CompletionsFish,
}

impl Generate {
    /// Writes what was asked for, about the program whose command line is `root`.
    ///
    /// # Errors
    /// When stdout or the folder does not take it; the text names the file.
    pub(crate) fn run(&self, root: &Command) -> io::Result<()> {
        let root = visible(root);
        if let Some(dir) = &self.dir {
            fs::create_dir_all(dir).map_err(|error| named(dir, &error))?;
            for piece in Piece::value_variants() {
                let file = dir.join(piece.file_name());
                fs::write(&file, piece.render(&root)?).map_err(|error| named(&file, &error))?;
            }
        }
        let text = self.piece.map(|piece| piece.render(&root)).transpose()?;
        io::stdout().write_all(&text.unwrap_or_default())
    }
}

impl Piece {
    /// As the folders of man and the shells want it.
    fn file_name(self) -> &'static str {
        match self {
            Self::Man => "warmroute.8",
            Self::CompletionsBash => "warmroute.bash",
            Self::CompletionsZsh => "_warmroute",
            Self::CompletionsFish => "warmroute.fish",
        }
    }

    fn render(self, root: &Command) -> io::Result<Vec<u8>> {
        let (mut root, mut out) = (root.clone(), Vec::new());
        match self {
            Self::Man => return man_page(root),
            Self::CompletionsBash => generate(Bash, &mut root, NAME, &mut out),
            Self::CompletionsZsh => generate(Zsh, &mut root, NAME, &mut out),
            Self::CompletionsFish => generate(Fish, &mut root, NAME, &mut out),
        }
        Ok(out)
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The command line without what `--help` does not show either: generators list hidden commands.
fn visible(root: &Command) -> Command {
    let mut shown = Command::new(NAME).subcommand_required(true).version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = root.get_about() {
        shown = shown.about(about.clone());
    }
    let subcommands = root.get_subcommands().filter(|command| !command.is_hide_set());
    shown.args(root.get_arguments()).subcommands(subcommands.cloned())
}

fn man_page(mut root: Command) -> io::Result<Vec<u8>> {
    let man = Man::new(root.clone()).section(SECTION).manual("System Administration");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;

    root.build();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for command in leaves(&root) {
        roff.text([bold(usage(&command))]);
        roff.control("br", []);
    }
    roff.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut roff, DESCRIPTION);
    roff.control("SH", ["COMMANDS"]);
    for command in leaves(&root) {
        roff.control("SS", [usage(&command).as_str()]);
        let about = command.get_long_about().or_else(|| command.get_about());
        paragraphs(&mut roff, &about.map(ToString::to_string).unwrap_or_default());
        for arg in command.get_arguments().filter(|arg| !is_builtin(arg)) {
            let help = arg.get_long_help().or_else(|| arg.get_help());
            entry(&mut roff, &arg_name(arg), &help.map(ToString::to_string).unwrap_or_default());
        }
    }
    for (title, entries) in [
        ("SIGNALS", SIGNALS),
        ("EXIT STATUS", EXITS),
        ("ENVIRONMENT", ENVIRONMENT),
        ("FILES", FILES),
    ] {
        roff.control("SH", [title]);
        for (name, text) in entries {
            entry(&mut roff, name, text);
        }
    }
    roff.control("SH", ["EXAMPLES"]);
    for (what, lines) in EXAMPLES {
        roff.control("PP", []);
        roff.text([roman(*what)]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        for line in *lines {
            roff.text([roman(*line)]);
        }
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("systemctl"), roman("(1), "), bold("journalctl"), roman("(1), ")]);
    roff.text([bold("systemd.service"), roman("(5), "), bold("systemd.socket"), roman("(5)")]);
    roff.control("PP", []);
    roff.text([roman("Metrics, policies, cache reports: "), italic("/usr/share/doc/warmroute")]);
    roff.to_writer(&mut out)?;
    Ok(out)
}

/// The commands that do something: those without commands below them.
fn leaves(command: &Command) -> Vec<Command> {
    let below = command.get_subcommands().filter(|sub| !sub.is_hide_set() && !is_help(sub));
    let leaves: Vec<_> = below.flat_map(leaves).collect();
    if leaves.is_empty() { vec![command.clone()] } else { leaves }
}

fn is_help(command: &Command) -> bool {
    command.get_name() == "help"
}

fn is_builtin(arg: &Arg) -> bool {
    arg.is_hide_set() || matches!(arg.get_id().as_str(), "help" | "version")
}

/// `warmroute run --conf <FILE>`.
fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").trim().to_owned()
}

/// "--conf FILE", or the name of a positional value.
fn arg_name(arg: &Arg) -> String {
    let values = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let values = values.unwrap_or_default().iter().map(ToString::to_string);
    let long = arg.get_long().map(|long| format!("--{long}"));
    long.into_iter().chain(values).collect::<Vec<_>>().join(" ")
}

fn entry(roff: &mut Roff, name: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(name)]);
    roff.text([roman(text)]);
}

/// Parted by empty lines.
fn paragraphs(roff: &mut Roff, text: &str) {
    for (at, paragraph) in text.split("\n\n").enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph.replace('\n', " "))]);
    }
}

const DESCRIPTION: &str = "\
warmroute sends each request of OpenAI-compatible clients to the inference engine that already holds \
the longest prefix of its prompt in its KV cache, unless that engine is saturated or sick.

It reads one YAML file. An unknown key or a bad value is refused in one line that names key, value \
and remedy. /usr/share/doc/warmroute/examples/example.yaml has every key with its default.

Under systemd it tells when it is ready, what it is doing, and that it is alive; it takes listening \
sockets from warmroute.socket where that unit is enabled.";

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGHUP",
        "Reads the configuration again. A bad one changes nothing: the log, the status line and a \
         metric say why.",
    ),
    (
        "SIGUSR2",
        "Upgrade in place: starts the program that now lies at the same path, hands it the listening \
         sockets and what is known of the engines' caches, and finishes its own requests. If the \
         successor does not come up, this process goes on.",
    ),
    (
        "SIGTERM",
        "Drains: takes no new connections, finishes its requests (at most timeouts.drain_s seconds), \
         and leaves.",
    ),
    ("SIGINT", "Leaves at once."),
];

const EXITS: &[(&str, &str)] = &[
    ("0", "Done; for run: drained."),
    ("1", "A command to the running process failed, or was refused by it."),
    ("64", "The command line or the configuration is bad; nothing was started."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "WARMROUTE_CONF",
        "The configuration file of the systemd unit; set in /etc/default/warmroute.",
    ),
    (
        "RUST_LOG",
        "Filter of log lines in the place of log.level, for example info,warmroute=debug.",
    ),
    ("FASTOKENS_BPE_THREADS", "Threads the tokenizer may use for one long text; the unit sets 1."),
    ("STATE_DIRECTORY", "Set by systemd: where state is kept unless state.dir says otherwise."),
    (
        "LISTEN_FDS, LISTEN_PID, NOTIFY_SOCKET, WATCHDOG_USEC",
        "The protocols of systemd: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).",
    ),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/warmroute/config.yaml", "The configuration of the service."),
    ("/etc/default/warmroute", "The environment of the service."),
    ("/var/lib/warmroute", "What survives a crash; may be deleted while the service is stopped."),
    ("/usr/share/doc/warmroute/examples/example.yaml", "Every key, commented."),
];

const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "First start of the packaged service:",
        &[
            "editor /etc/warmroute/config.yaml",
            "warmroute check --conf /etc/warmroute/config.yaml",
            "systemctl enable --now warmroute",
        ],
    ),
    ("A changed configuration:", &["systemctl reload warmroute"]),
    (
        "Upgrade in place, as the package does it:",
        &["systemctl kill -s USR2 --kill-who=main warmroute"],
    ),
    (
        "Listening sockets that stay open while the service restarts:",
        &["systemctl stop warmroute", "systemctl enable --now warmroute.socket warmroute.service"],
    ),
    ("The fleet as this router sees it:", &["curl -s http://127.0.0.1:9900/workers"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Command {
        let conf = Arg::new("conf").long("conf").value_name("FILE").required(true).help("A file");
        let list = Command::new("list").about("List them").arg(conf.clone());
        Command::new("other")
            .about("A program")
            .version("1.2.3")
            .subcommand(Command::new("run").about("Serve traffic").arg(conf))
            .subcommand(Command::new("workers").about("Workers").subcommand(list))
            .subcommand(Command::new("secret").about("Not for you").hide(true))
    }

    fn text(piece: Piece) -> String {
        String::from_utf8(piece.render(&visible(&root())).expect("renders")).expect("UTF-8")
    }

    #[test]
    fn every_visible_command_is_everywhere_and_hidden_ones_are_nowhere() {
        for piece in Piece::value_variants() {
            let text = text(*piece);
            for word in ["run", "workers", "list", "conf"] {
                assert!(text.contains(word), "{piece:?} lacks {word}: {text}");
            }
            assert!(!text.contains("secret"), "{piece:?}: {text}");
        }
    }

    #[test]
    fn the_page_shows_each_command_as_it_is_typed() {
        let text = text(Piece::Man);
        assert!(text.starts_with(".ie"), "{text}");
        assert!(text.contains(".TH warmroute 8"), "{text}");
        assert!(text.contains("warmroute run \\-\\-conf <FILE>"), "{text}");
        assert!(text.contains("warmroute workers list \\-\\-conf <FILE>"), "{text}");
        for section in ["NAME", "SYNOPSIS", "COMMANDS", "SIGNALS", "FILES", "EXAMPLES"] {
            assert!(text.contains(&format!(".SH {section}")), "{text}");
        }
    }

    #[test]
    fn files_are_named_as_their_readers_look_for_them() {
        let folder =
            std::env::temp_dir().join(format!("warmroute-generate-{}", std::process::id()));
        let generate = Generate { piece: None, dir: Some(folder.clone()) };
        generate.run(&root()).expect("writes");
        for name in ["warmroute.8", "warmroute.bash", "_warmroute", "warmroute.fish"] {
            let bytes = fs::metadata(folder.join(name)).expect("is there").len();
            assert!(bytes > 100, "{name}: {bytes}");
        }
        fs::remove_dir_all(folder).expect("ours");
    }
}
