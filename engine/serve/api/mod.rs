//! `/api/v1`: a run as JSON.
//!
//! Fields may be added within `v1`; none is taken away or changes its meaning.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod reading;
pub mod told;

use super::{Shown, openapi};
use crate::Stopper;
use crate::job::progress::Progress;
use crate::plan::describe::Described;
use told::{Channels, Control, Epochs, Memory, Pipeline, PositionsTold, Quarantine, RunState, Sample, Sources, Tables};

/// Why there is no other answer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// What is wrong, for people.
    pub error: String,
}

/// A status and its reason.
pub struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    /// Refuses with a reason.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// Gives the status.
    #[cfg(test)]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(Refused { error: self.text });
        match self.status {
            StatusCode::UNAUTHORIZED => {
                (self.status, [(header::WWW_AUTHENTICATE, "Bearer realm=\"nexus\"")], body).into_response()
            }
            status => (status, body).into_response(),
        }
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Gives the paths below `/api/v1`.
pub(super) fn router() -> Router<Arc<Shown>> {
    Router::new()
        .route("/openapi.json", get(|| async { Json(openapi::document()) }))
        .route("/pipeline", get(pipeline))
        .route("/plan", get(plan))
        .route("/sources", get(sources))
        .route("/tables", get(tables))
        .route("/tables/{table}/sample", get(sample))
        .route("/epochs", get(epochs))
        .route("/positions", get(positions))
        .route("/channels", get(channels))
        .route("/memory", get(memory))
        .route("/quarantine", get(quarantine))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/drain", post(drain))
        .fallback(unknown)
        .method_not_allowed_fallback(|| async { Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method") })
}

async fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such path; see /api/v1/openapi.json")
}

fn open(shown: &Shown) -> Result<&Arc<Progress>, Refusal> {
    let starting = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the sources are not open yet");
    shown.progress.get().ok_or_else(starting)
}

fn described(shown: &Shown) -> Result<Arc<Described>, Refusal> {
    let missing = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the pipeline is not planned yet");
    open(shown)?.described().ok_or_else(missing)
}

async fn pipeline(State(shown): State<Arc<Shown>>) -> Answer<Pipeline> {
    let can_control = shown.stopper.get().is_some();
    let (progress, described) = (open(&shown)?, described(&shown)?);
    Ok(Json(Pipeline::of(progress, &described, &shown.rates, shown.not_ready(), can_control)))
}

async fn plan(State(shown): State<Arc<Shown>>) -> Answer<Described> {
    Ok(Json(described(&shown)?.as_ref().clone()))
}

async fn sources(State(shown): State<Arc<Shown>>) -> Answer<Sources> {
    Ok(Json(Sources::of(open(&shown)?, &shown.rates)))
}

async fn tables(State(shown): State<Arc<Shown>>) -> Answer<Tables> {
    Ok(Json(Tables::of(open(&shown)?, &shown.rates)))
}

async fn sample(State(shown): State<Arc<Shown>>, Path(table): Path<String>) -> Answer<Sample> {
    let (progress, described) = (open(&shown)?, described(&shown)?);
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, format!("there is no table {table}"));
    Sample::of(progress, &described, &table).map(Json).ok_or_else(unknown)
}

async fn epochs(State(shown): State<Arc<Shown>>) -> Answer<Epochs> {
    Ok(Json(Epochs::of(open(&shown)?)))
}

async fn positions(State(shown): State<Arc<Shown>>) -> Answer<PositionsTold> {
    Ok(Json(PositionsTold::of(open(&shown)?)))
}

async fn channels(State(shown): State<Arc<Shown>>) -> Answer<Channels> {
    Ok(Json(Channels::of(open(&shown)?, &shown.rates)))
}

async fn memory(State(shown): State<Arc<Shown>>) -> Answer<Memory> {
    Ok(Json(Memory::of(open(&shown)?)))
}

async fn quarantine(State(shown): State<Arc<Shown>>) -> Answer<Quarantine> {
    Ok(Json(Quarantine::of(open(&shown)?)))
}

async fn pause(State(shown): State<Arc<Shown>>) -> Answer<Control> {
    order(&shown, "pause", Stopper::pause)
}

async fn resume(State(shown): State<Arc<Shown>>) -> Answer<Control> {
    order(&shown, "resume", Stopper::resume)
}

async fn drain(State(shown): State<Arc<Shown>>) -> Answer<Control> {
    order(&shown, "drain", Stopper::stop)
}

fn order(shown: &Shown, what: &str, give: impl Fn(&Stopper)) -> Answer<Control> {
    let progress = open(shown)?;
    let shut = || Refusal::new(StatusCode::CONFLICT, "the process that serves this page takes no orders for the run");
    give(shown.stopper.get().ok_or_else(shut)?);
    tracing::info!("told by the API to {what}");
    Ok(Json(Control { state: RunState::of(progress) }))
}
