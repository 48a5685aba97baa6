//! The admin endpoints of a gateway: `/livez`, `/readyz`, `/metrics` (Prometheus text format 0.0.4) and `/routes` (the table in
//! force, as JSON). Reads only; knows nothing of forwarding.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use hyper::{Method, Response, StatusCode};

use super::{
    body::ResponseBody,
    endpoint::now_ms,
    measure::Meters,
    problem::{problem, text},
    table::TableHandle,
};
use swell_model::{
    rollout::assignment::Generation,
    routing::measurement::{Counts, LATENCY_BOUNDS_US},
};

/// The admin endpoints of one gateway.
#[derive(Debug)]
pub struct Admin {
    pub table: TableHandle,
    pub meters: Arc<Meters>,
    /// Set once the gateway takes no new connections.
    pub stopping: Arc<AtomicBool>,
}

impl Admin {
    /// Answers one request.
    pub fn answer(&self, method: &Method, path: &str) -> Response<ResponseBody> {
        if method != Method::GET && method != Method::HEAD {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "admin endpoints take GET and HEAD only");
        }
        match path {
            "/livez" => text(StatusCode::OK, "text/plain", "ok\n".into()),
            "/readyz" => self.ready(),
            "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", self.metrics()),
            "/routes" => match serde_json::to_string_pretty(&*self.table.load().source) {
                Ok(json) => text(StatusCode::OK, "application/json", json + "\n"),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("failed to write the routes as JSON: {error}")),
            },
            _ => problem(StatusCode::NOT_FOUND, "no such admin endpoint; there are /livez, /readyz, /metrics and /routes"),
        }
    }

    fn ready(&self) -> Response<ResponseBody> {
        if self.stopping.load(Relaxed) {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping");
        }
        let generation = self.table.generation();
        if generation == Generation::default() {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "the gateway has no routes yet, it waits for a server");
        }
        text(StatusCode::OK, "text/plain", format!("ready: routes of generation {generation}\n"))
    }

    fn metrics(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        // Writing to a String cannot fail.
        let written = self.write_metrics(&mut out);
        debug_assert!(written.is_ok());
        out
    }

    fn write_metrics(&self, out: &mut String) -> std::fmt::Result {
        let table = self.table.load();
        writeln!(out, "# HELP swell_gateway_table_index Log index that the routes in force follow from.")?;
        writeln!(out, "# TYPE swell_gateway_table_index gauge")?;
        writeln!(out, "swell_gateway_table_index {}", table.source.generation.index)?;
        writeln!(out, "# TYPE swell_gateway_connections gauge")?;
        writeln!(out, "swell_gateway_connections {}", self.meters.connections.load(Relaxed))?;
        writeln!(out, "# TYPE swell_gateway_retries_total counter")?;
        writeln!(out, "swell_gateway_retries_total {}", self.meters.retries.load(Relaxed))?;
        writeln!(out, "# HELP swell_gateway_own_answers_total Answers of the gateway itself, by status.")?;
        writeln!(out, "# TYPE swell_gateway_own_answers_total counter")?;
        for (status, count) in self.meters.refusals() {
            writeln!(out, "swell_gateway_own_answers_total{{status=\"{status}\"}} {count}")?;
        }

        let totals: Vec<(String, Counts)> = (self.meters.totals().into_iter())
            .map(|(service, release, counts)| (format!("service=\"{service}\",release=\"{release}\""), counts))
            .collect();
        writeln!(out, "# TYPE swell_gateway_requests_total counter")?;
        for (labels, counts) in &totals {
            for (class, count) in counts.answers.iter().enumerate() {
                writeln!(out, "swell_gateway_requests_total{{{labels},class=\"{}xx\"}} {count}", class + 1)?;
            }
            writeln!(out, "swell_gateway_requests_total{{{labels},class=\"unanswered\"}} {}", counts.unanswered)?;
        }
        writeln!(out, "# TYPE swell_gateway_broken_bodies_total counter")?;
        for (labels, counts) in &totals {
            writeln!(out, "swell_gateway_broken_bodies_total{{{labels}}} {}", counts.broken)?;
        }
        writeln!(out, "# HELP swell_gateway_request_seconds Time until the head of an answer.")?;
        writeln!(out, "# TYPE swell_gateway_request_seconds histogram")?;
        for (labels, counts) in &totals {
            write_histogram(out, labels, counts)?;
        }

        writeln!(out, "# TYPE swell_gateway_instance_in_flight gauge")?;
        writeln!(out, "# TYPE swell_gateway_instance_ejected gauge")?;
        let now_ms = now_ms();
        for service in table.services() {
            for candidate in service.candidates.iter() {
                let endpoint = &candidate.endpoint;
                let labels =
                    format!("service=\"{}\",release=\"{}\",address=\"{}\"", service.key, candidate.release, endpoint.address);
                writeln!(out, "swell_gateway_instance_in_flight{{{labels}}} {}", endpoint.in_flight())?;
                writeln!(out, "swell_gateway_instance_ejected{{{labels}}} {}", u8::from(endpoint.is_ejected(now_ms)))?;
            }
        }
        Ok(())
    }
}

fn write_histogram(out: &mut String, labels: &str, counts: &Counts) -> std::fmt::Result {
    let mut below = 0;
    for (bound_us, count) in LATENCY_BOUNDS_US.iter().zip(counts.latency) {
        below += count;
        let bound_s = *bound_us as f64 / 1e6;
        writeln!(out, "swell_gateway_request_seconds_bucket{{{labels},le=\"{bound_s}\"}} {below}")?;
    }
    let all: u64 = counts.latency.iter().sum();
    writeln!(out, "swell_gateway_request_seconds_bucket{{{labels},le=\"+Inf\"}} {all}")?;
    writeln!(out, "swell_gateway_request_seconds_sum{{{labels}}} {}", counts.latency_us_sum as f64 / 1e6)?;
    writeln!(out, "swell_gateway_request_seconds_count{{{labels}}} {all}")
}
