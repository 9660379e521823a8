//! The public API, item by item, as `docs/public-api.txt` lists it: who changes it sees it there, and so does who reviews.
//!
//! The list is read off the sources: every item that a path of public modules and re-exports leads to, with its signature.
//! What macros make is not seen, and neither are the impls of traits; methods are told apart by the name of their type
//! alone, so that types of one name show those of each other. `UPDATE_SNAPSHOTS=1 cargo test` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Field, Fields, ImplItem, Item, ItemMod, TraitItem, UseTree, Variant, Visibility};

use crate::world::repository;

/// The crates, with the file that each begins in.
const CRATES: [(&str, &str); 2] = [("nexus", "engine/lib.rs"), ("nexus_operators", "operators/lib.rs")];

/// A module: its public items by name, each with the lines that describe it, and what it re-exports.
#[derive(Default)]
struct Module {
    is_public: bool,
    items: BTreeMap<String, Vec<String>>,
    /// Methods of types, which may be defined in another file of the crate.
    methods: Vec<(String, String)>,
    uses: Vec<(Vec<String>, String)>,
    modules: BTreeMap<String, Module>,
}

#[test]
fn the_public_api_is_the_one_that_is_listed() {
    let mut listed = BTreeSet::new();
    for (name, file) in CRATES {
        let root = read(&repository(file), repository(file).parent().expect("it lies in a folder"));
        let mut methods = BTreeMap::new();
        gather(&root, &mut methods);
        Listing { root: &root, methods: &methods, listed: &mut listed }.list(&root, name);
    }
    let listed = listed.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    let path = repository("docs/public-api.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &listed).expect("the list can be written");
    }
    let known = fs::read_to_string(&path).expect("docs/public-api.txt is there");
    let (known, listed): (BTreeSet<&str>, BTreeSet<&str>) = (known.lines().collect(), listed.lines().collect());
    let (gone, new) = (known.difference(&listed), listed.difference(&known));
    let changes: Vec<String> =
        gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect();
    assert!(
        changes.is_empty(),
        "the public API is another one; if that is meant, write docs/public-api.txt anew with UPDATE_SNAPSHOTS=1, and \
         say it in the CHANGELOG:\n{}",
        changes.join("\n")
    );
}

/// Reads a file as a module; modules that it declares lie in `folder`.
fn read(file: &Path, folder: &Path) -> Module {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut module = Module::default();
    for item in &parsed.items {
        take(item, &mut module, folder);
    }
    module
}

fn take(item: &Item, module: &mut Module, folder: &Path) {
    let mut public = |vis: &Visibility, name: &dyn ToString, line: String| {
        if matches!(vis, Visibility::Public(_)) {
            module.items.entry(name.to_string()).or_default().push(line);
        }
    };
    match item {
        Item::Const(item) => public(&item.vis, &item.ident, format!("const {}: {}", item.ident, text(&item.ty))),
        Item::Static(item) => public(&item.vis, &item.ident, format!("static {}: {}", item.ident, text(&item.ty))),
        Item::Type(item) => public(&item.vis, &item.ident, format!("type {} = {}", item.ident, text(&item.ty))),
        Item::Fn(item) if !is_hidden(&item.attrs) => public(&item.vis, &item.sig.ident, text(&item.sig)),
        Item::Struct(item) => {
            let name = item.ident.to_string();
            public(&item.vis, &name, format!("struct {name}{}", text(&item.generics)));
            let fields = match &item.fields {
                Fields::Named(fields) => fields.named.iter().collect(),
                Fields::Unnamed(fields) => fields.unnamed.iter().collect(),
                Fields::Unit => Vec::new(),
            };
            for (place, field) in fields.into_iter().enumerate() {
                if matches!(field.vis, Visibility::Public(_)) {
                    let field_name = field.ident.as_ref().map_or_else(|| place.to_string(), ToString::to_string);
                    public(&item.vis, &name, format!("struct {name}.{field_name}: {}", text(&field.ty)));
                }
            }
        }
        Item::Enum(item) => {
            let name = item.ident.to_string();
            public(&item.vis, &name, format!("enum {name}{}", text(&item.generics)));
            for variant in &item.variants {
                public(&item.vis, &name, format!("enum {name}::{}", variant_text(variant)));
            }
        }
        Item::Trait(item) => {
            let name = item.ident.to_string();
            let bounds = text(&item.supertraits);
            public(&item.vis, &name, format!("trait {name}: {bounds}"));
            for one in &item.items {
                if let TraitItem::Fn(method) = one {
                    public(&item.vis, &name, format!("trait {name}::{}", text(&method.sig)));
                }
            }
        }
        Item::Impl(item) if item.trait_.is_none() && !is_hidden(&item.attrs) => {
            let of = text(&item.self_ty);
            let of = of.split('<').next().unwrap_or_default().to_owned();
            for one in &item.items {
                match one {
                    ImplItem::Fn(method) if matches!(method.vis, Visibility::Public(_)) => {
                        module.methods.push((of.clone(), format!("impl {of}::{}", text(&method.sig))));
                    }
                    ImplItem::Const(one) if matches!(one.vis, Visibility::Public(_)) => {
                        module.methods.push((of.clone(), format!("impl {of}::const {}: {}", one.ident, text(&one.ty))));
                    }
                    _ => {}
                }
            }
        }
        Item::Use(item) if matches!(item.vis, Visibility::Public(_)) => flatten(&item.tree, &[], &mut module.uses),
        Item::Mod(item) if !is_hidden(&item.attrs) => {
            let mut below = open(item, folder);
            below.is_public = matches!(item.vis, Visibility::Public(_));
            module.modules.insert(item.ident.to_string(), below);
        }
        _ => {}
    }
}

fn open(item: &ItemMod, folder: &Path) -> Module {
    let name = item.ident.to_string();
    if let Some((_, items)) = &item.content {
        let mut module = Module::default();
        items.iter().for_each(|item| take(item, &mut module, &folder.join(&name)));
        return module;
    }
    let below: PathBuf = folder.join(&name);
    let candidates = [folder.join(format!("{name}.rs")), below.join("mod.rs")];
    let file = candidates.iter().find(|file| file.is_file()).unwrap_or_else(|| panic!("no file of module {name}"));
    read(file, &below)
}

/// Tells whether an item is there in tests only.
fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let words = text(attribute);
        words.contains("cfg(test)") || words.contains("\"testing\"") || words.contains("doc(hidden)")
    })
}

fn variant_text(variant: &Variant) -> String {
    let field = |field: &Field| match &field.ident {
        Some(name) => format!("{name}: {}", text(&field.ty)),
        None => text(&field.ty),
    };
    let fields: Vec<String> = variant.fields.iter().map(field).collect();
    if fields.is_empty() { variant.ident.to_string() } else { format!("{}({})", variant.ident, fields.join(", ")) }
}

fn flatten(tree: &UseTree, path: &[String], uses: &mut Vec<(Vec<String>, String)>) {
    let with = |name: String| [path, &[name]].concat();
    match tree {
        UseTree::Path(below) => flatten(&below.tree, &with(below.ident.to_string()), uses),
        UseTree::Name(name) => uses.push((with(name.ident.to_string()), name.ident.to_string())),
        UseTree::Rename(rename) => uses.push((with(rename.ident.to_string()), rename.rename.to_string())),
        UseTree::Glob(_) => uses.push((with("*".to_owned()), "*".to_owned())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, path, uses)),
    }
}

fn gather(module: &Module, methods: &mut BTreeMap<String, Vec<String>>) {
    for (of, line) in &module.methods {
        methods.entry(of.clone()).or_default().push(line.clone());
    }
    module.modules.values().for_each(|below| gather(below, methods));
}

/// What is listed, and what is known of all types.
struct Listing<'a> {
    root: &'a Module,
    methods: &'a BTreeMap<String, Vec<String>>,
    listed: &'a mut BTreeSet<String>,
}

impl Listing<'_> {
    /// Lists an item of a module that is called `shown` at `path`.
    fn show(&mut self, path: &str, of: &Module, name: &str, shown: &str) {
        let own = self.methods.get(name).into_iter().flatten();
        for line in of.items.get(name).into_iter().flatten().chain(own) {
            self.listed.insert(format!("{path}: {}", line.replacen(name, shown, 1)));
        }
    }

    /// Lists what a module shows at `path`.
    fn list(&mut self, module: &Module, path: &str) {
        module.items.keys().for_each(|name| self.show(path, module, name, name));
        for (used, shown) in &module.uses {
            let (name, modules) = used.split_last().expect("a use names something");
            let (mut from, modules) = match modules.first().map(String::as_str) {
                Some("crate") => (Some(self.root), &modules[1..]),
                Some("self") => (Some(module), &modules[1..]),
                _ => (Some(module), modules),
            };
            for step in modules {
                from = from.and_then(|from| from.modules.get(step));
            }
            match from {
                Some(from) if name == "*" => from.items.keys().for_each(|name| self.show(path, from, name, name)),
                Some(from) if from.items.contains_key(name) => self.show(path, from, name, shown),
                // Of another crate, or a module.
                _ => drop(self.listed.insert(format!("{path}: use {} as {shown}", used.join("::")))),
            }
        }
        for (name, below) in module.modules.iter().filter(|(_, below)| below.is_public) {
            self.list(below, &format!("{path}::{name}"));
        }
    }
}

/// Writes tokens as people do, near enough.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" :", ":"),
        ("& ", "&"),
        (" ;", ";"),
        ("[ ", "["),
        (" ]", "]"),
        (",)", ")"),
        (" !", "!"),
        ("# [", "#["),
        ("-> ", " -> "),
        ("  ", " "),
        ("- >", "->"),
        (" ->", " ->"),
    ] {
        text = text.replace(from, to);
    }
    text.replace("->(", "-> (").trim().to_owned()
}
