//! The dashboard in docs/ asks for metrics that there are.

use std::collections::BTreeSet;
use std::sync::Arc;

use profiler::daemon::alerts::Actions;
use profiler::daemon::hub::Hub;
use profiler::daemon::metrics::{Snapshot, classic};
use profiler::daemon::push::{PushConfig, Pusher, StoreKind};
use profiler::daemon::store::StoreState;
use profiler::profile::{Column, Finding, FindingKind, Severity, Timeline};
use serde_json::Value;

use crate::store::window;

/// Everything that can be told.
fn told() -> String {
    let mut window = window(0);
    window.index.timeline = Timeline {
        start_ns: vec![0],
        length_ns: vec![1],
        columns: Column::ALL.into_iter().map(|column| (column.name().to_owned(), vec![Some(1)])).collect(),
    };
    let hub = Hub::default();
    hub.publish(Arc::new(window));
    let state = tempfile::tempdir().unwrap();
    let store = PushConfig {
        kind: StoreKind::Pyroscope,
        address: "http://127.0.0.1:1".to_owned(),
        labels: Default::default(),
        authorization_file: Default::default(),
        ca: Default::default(),
        queue_mib: 1,
    };
    let pusher = Pusher::new(state.path(), &[store]).unwrap();
    let finding = Finding {
        kind: FindingKind::Disk,
        severity: Severity::High,
        title: String::new(),
        evidence: Vec::new(),
        confidence: 1.0,
        effect: 0.5,
        recommendation: String::new(),
    };
    let snapshot = Snapshot {
        totals: Some(hub.totals()),
        store: Some(StoreState::default()),
        findings: vec![finding],
        requests: vec![("2xx".to_owned(), 1)],
        healthy: true,
        more: [pusher.metrics(), Actions::new(&[]).unwrap().state().metrics()].concat(),
    };
    classic(&snapshot.to_open_metrics())
}

/// Every text of a JSON value.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
        Value::Object(object) => object.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(include_str!("../../../docs/grafana.json")).unwrap();
    let mut all = Vec::new();
    texts(&dashboard, &mut all);
    let asked: BTreeSet<&str> = all
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with("profiler_"))
        .collect();
    assert!(asked.len() > 10, "{asked:?}");
    let told = told();
    let names: BTreeSet<&str> = told
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .collect();
    let missing: Vec<_> = asked.difference(&names).collect();
    assert!(missing.is_empty(), "{missing:?} are not in\n{told}");
    // Of each panel one row and one column are its own.
    let places = dashboard["panels"].as_array().unwrap().iter().map(|panel| panel["gridPos"].to_string());
    assert_eq!(places.collect::<BTreeSet<_>>().len(), dashboard["panels"].as_array().unwrap().len());
}
