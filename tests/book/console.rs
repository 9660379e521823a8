//! Runs the commands of a page: in blocks of the language `console`, each behind a `$`, with their output below.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::world::{World, command_path, repository};

/// Runs all commands of a page in a folder that begins as a fresh clone does, as far as pipelines go; gives the page with
/// what they print. What differs from the page only in times is left as it is.
pub fn run(page: &str) -> String {
    let world = World::new();
    copy(&repository("pipelines"), &world.path("pipelines"));
    fs::create_dir_all(world.path("bin")).expect("a folder can be made");
    std::os::unix::fs::symlink(command_path(), world.path("bin/nexus")).expect("a link can be made");
    let mut lines = Vec::new();
    let mut rest = page.lines().peekable();
    while let Some(line) = rest.next() {
        lines.push(line.to_owned());
        if line != "```console" {
            continue;
        }
        while let Some(line) = rest.next_if(|line| *line != "```") {
            lines.push(line.to_owned());
            let Some(command) = line.strip_prefix("$ ") else { continue };
            let mut command = command.to_owned();
            while command.ends_with('\\') {
                let more = rest.next().expect("a command that is broken goes on");
                lines.push(more.to_owned());
                command = format!("{command}\n{more}");
            }
            if command.ends_with("<<'END'") {
                while !command.ends_with("\nEND") {
                    let more = rest.next().expect("a document in place ends");
                    lines.push(more.to_owned());
                    command = format!("{command}\n{more}");
                }
            }
            let mut known = Vec::new();
            while let Some(line) = rest.next_if(|line| *line != "```" && !line.starts_with("$ ")) {
                known.push(line.to_owned());
            }
            let said: Vec<String> = shell(&world, &command).lines().map(|line| line.trim_end().to_owned()).collect();
            let is_of_epochs = command.starts_with("nexus run") || command.starts_with("nexus audit");
            let told = |line: &String| if is_of_epochs { countless(&timeless(line)) } else { timeless(line) };
            let is_known = said.len() == known.len() && said.iter().zip(&known).all(|(a, b)| told(a) == told(b));
            lines.extend(if is_known { known } else { said });
        }
    }
    lines.join("\n") + "\n"
}

fn shell(world: &World, command: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", &format!("{{ {command}\n}} 2>&1")])
        .current_dir(world.path(""))
        .env("PATH", format!("{}:{path}", world.path("bin").display()))
        .env("RUST_LOG", "warn")
        .env_remove("DATABASE_URL")
        .output()
        .expect("bash runs");
    String::from_utf8(output.stdout)
        .expect("what is printed is UTF-8")
        .replace(&format!("{}/", world.path("").display()), "")
}

/// Leaves out counts of one or two digits, the space around them, and the difference between one epoch and more: a slow
/// machine makes more epochs, and so more files.
fn countless(line: &str) -> String {
    let is_count = |word: &str| word.len() <= 2 && word.bytes().all(|byte| byte.is_ascii_digit());
    let told = |word| if is_count(word) { "#" } else { word };
    let words: Vec<&str> = line.split_whitespace().map(told).collect();
    words.join(" ").replace("# epochs", "# epoch")
}

/// Leaves out how long something took.
fn timeless(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_unit = |word: Option<&&str>| {
        word.is_some_and(|word| matches!(word.trim_matches(|c: char| !c.is_alphanumeric()), "s" | "ms"))
    };
    let is_time = |place: usize| is_unit(words.get(place + 1)) && words[place].ends_with(|c: char| c.is_ascii_digit());
    let kept = (0..words.len()).map(|place| if is_time(place) { "#" } else { words[place] });
    kept.collect::<Vec<_>>().join(" ")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for item in fs::read_dir(from).expect("the folder is there").flatten() {
        let (path, name) = (item.path(), item.file_name());
        if name == "lake" {
            continue;
        }
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).expect("a file can be copied");
        }
    }
}
