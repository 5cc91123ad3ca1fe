//! Plays the demo's trace against four engines without a router: round robin, then each session
//! on one engine. What a router adds lies between or beyond these two.

use std::io::Write;

use warmroute_engine::load::{self, LoadOptions, Spread, Trace};
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let trace = Trace::demo_chat();
    for spread in [Spread::Requests, Spread::Sessions] {
        let start = |_| Engine::start(EngineOptions::demo());
        let engines = (0..4).map(start).collect::<Result<Vec<_>, _>>()?;
        let urls = engines.iter().map(EngineHandle::url).collect();
        let options = LoadOptions { urls, spread, ..LoadOptions::new("") };
        let result = load::run(&trace, &options, |_| ()).await?;
        let evicted: u64 = engines.iter().map(|engine| engine.stats().evicted_blocks).sum();
        let summary = result.summary();
        writeln!(std::io::stdout(), "{spread:?}: {summary:#?}\nevicted blocks: {evicted}")?;
    }
    Ok(())
}
