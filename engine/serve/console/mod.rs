//! The console: a page for people, which asks the API. Its parts are in the binary, and it loads nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use super::Shown;

/// The parts: path, type and text.
const PARTS: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/console.css", "text/css; charset=utf-8", include_str!("console.css")),
    ("/console.js", "text/javascript; charset=utf-8", include_str!("console.js")),
    ("/icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("/coast.svg", "image/svg+xml", include_str!("coast.svg")),
];

/// Gives the paths of the console.
pub(super) fn router() -> Router<Arc<Shown>> {
    let serve = |router: Router<Arc<Shown>>, (path, kind, text): (&'static str, &'static str, &'static str)| {
        router.route(path, get(move || async move { ([(CONTENT_TYPE, kind)], text) }))
    };
    PARTS.into_iter().fold(Router::new(), serve)
}

/// Tells whether a path is a part of the console, which holds nothing of a run.
pub fn has(path: &str) -> bool {
    PARTS.iter().any(|(part, ..)| *part == path)
}
