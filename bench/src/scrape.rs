//! Reads the router's own figures from its metrics page.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

/// The page of a metrics listener.
///
/// # Errors
/// When it cannot be had.
pub async fn page(
    addr: SocketAddr,
) -> Result<String, Box<dyn std::error::Error + Send + Sync + 'static>> {
    let socket = tokio::net::TcpStream::connect(addr).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/metrics").header("host", "bench");
    let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
}

/// The sum of all series of a metric.
pub fn sum(page: &str, name: &str) -> f64 {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    values.sum()
}

/// Upper bound of the bucket of decision times that holds the quantile `q`, microseconds.
pub fn decision(page: &str, q: f64) -> f64 {
    let buckets: Vec<(f64, f64)> = page
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("warmroute_decision_seconds_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
        })
        .collect();
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    let found = buckets.iter().find(|(_, count)| *count >= q * total);
    found.map_or(f64::NAN, |(bound, _)| bound * 1e6)
}
