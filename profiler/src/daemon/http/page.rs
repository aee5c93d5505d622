//! The page: one text, that asks nobody but us.

use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use crate::output::report_html;

/// The page, with marks for what it shares with `report.html`.
const PAGE: &str = include_str!("page.html");

/// What a browser may do for it: run what is in it, and ask us.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
    form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// `/`.
pub(super) async fn page() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, report_html::with_parts(PAGE)).into_response()
}
