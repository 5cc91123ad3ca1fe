//! What operators may tell the process itself to do.

use http::StatusCode;
use serde_json::json;

use super::Answer;
use crate::{
    lifecycle::{Control, UpgradeError},
    wire_http::{error_response, json_response},
};

/// Reads the configuration again.
pub(super) async fn reload(control: &Control) -> Answer {
    match control.reload().await {
        Ok(Ok(reloaded)) => json_response(StatusCode::OK, &json!(reloaded)),
        Ok(Err(error)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            error_response(status, "bad_configuration", &error.to_string())
        }
        Err(ending) => error_response(StatusCode::CONFLICT, "ending", &ending.to_string()),
    }
}

/// Hands over to a new process; answers once that serves.
pub(super) async fn upgrade(control: &Control) -> Answer {
    match control.upgrade().await {
        Ok(Ok(pid)) => json_response(StatusCode::OK, &json!({"pid": pid})),
        Ok(Err(error @ UpgradeError::UnderWay)) => {
            error_response(StatusCode::CONFLICT, "under_way", &error.to_string())
        }
        Ok(Err(error)) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            error_response(status, "upgrade_failed", &error.to_string())
        }
        Err(ending) => error_response(StatusCode::CONFLICT, "ending", &ending.to_string()),
    }
}
