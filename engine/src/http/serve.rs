//! From a request to its answer: find the call, run it, count it.

use std::convert::Infallible;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, Response};

use super::link::LinkHandle;
use super::problem::Problem;
use super::reply::{Body, Reply};
use super::route::{Route, Surface, route};
use super::worker::Worker;
use super::{
    admin, batch, cluster, events, history, members, misrouted, probes, redeem, redemptions, sales,
};

/// Answers one request. Never fails: what goes wrong is an answer.
pub async fn serve(
    worker: Rc<Worker>,
    link: LinkHandle,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    link.request_begins();
    let began_ns = worker.now_ns();
    let (parts, mut body) = request.into_parts();
    let (call, result) = match route(link.surface(), &parts.method, parts.uri.path()) {
        Ok(route) => {
            let result = dispatch(&worker, link.surface(), route, &parts, &mut body).await;
            note_write(&worker, route, &parts, &result);
            (route.index(), result)
        }
        Err(problem) => (Route::Unknown.index(), Err(problem)),
    };
    let reply = result.unwrap_or_else(Reply::from);
    worker.cells.answered(call, reply.label, worker.now_ns().saturating_sub(began_ns));
    link.request_ends(matches!(reply.response.body(), Body::Stream(_)));
    Ok(reply.response)
}

/// Whoever was told of a write finds it in every page that is asked for from now on.
fn note_write(worker: &Worker, route: Route<'_>, parts: &Parts, result: &Result<Reply, Problem>) {
    let Some(history) = worker.shared.history.get() else { return };
    if result.is_err() {
        return;
    }
    match route {
        Route::Redeem { .. } | Route::Confirm { .. } | Route::Cancel { .. } => {
            if let Ok(member) = worker.identity.member(&parts.headers) {
                history.note_write(member);
            }
        }
        Route::Batch
        | Route::ChangePoints { .. }
        | Route::Reverse { .. }
        | Route::ImportMembers => history.note_writes(),
        _ => {}
    }
}

/// The hot call is awaited in place; the others are boxed, so that the future that every
/// connection keeps room for stays small.
async fn dispatch(
    worker: &Rc<Worker>,
    surface: Surface,
    route: Route<'_>,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    match route {
        Route::Redeem { sale } => redeem::redeem(worker, sale, parts, body).await,
        other => Box::pin(dispatch_rest(worker, surface, other, parts, body)).await,
    }
}

async fn dispatch_rest(
    worker: &Rc<Worker>,
    surface: Surface,
    route: Route<'_>,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    if let Some(decision) = misrouted::place(worker, surface, route, parts)? {
        return misrouted::answer(worker, surface, decision, parts, body).await;
    }
    let is_admin = surface == Surface::Admin;
    match route {
        Route::Redeem { .. } => unreachable!("dispatched in place"),
        Route::Confirm { id } => redemptions::confirm(worker, id, parts, body).await,
        Route::Cancel { id } => redemptions::cancel(worker, id, parts, body).await,
        Route::Redemption { id } if is_admin => admin::redemption(worker, id).await,
        Route::Redemption { id } => redemptions::read(worker, id, parts).await,
        Route::Batch => batch::batch(worker, surface, parts, body).await,
        Route::MyRedemptions => redemptions::list(worker, parts).await,
        Route::MyStatement => history::statement(worker, parts).await,
        Route::ItemRedemptions { sale, sku } => history::of_item(worker, sale, sku, parts).await,
        Route::MyPoints => members::points(worker, parts).await,
        Route::Sales => sales::list(worker, parts),
        Route::Sale { sale } if is_admin => admin::sale(worker, sale, parts).await,
        Route::Sale { sale } => sales::one(worker, sale, parts),
        Route::SaleEvents { sale } => events::watch(worker, sale, parts),
        Route::DefineSale => admin::define_sale(worker, parts, body).await,
        Route::StepSale { sale, step } => admin::step_sale(worker, sale, step, parts, body).await,
        Route::ChangeStock { sale, sku } => {
            admin::change_stock(worker, sale, sku, parts, body).await
        }
        Route::ChangePoints { member } => admin::change_points(worker, member, parts, body).await,
        Route::Member { member } => admin::member(worker, member).await,
        Route::ImportMembers => super::import::import(worker, parts, body).await,
        Route::Reverse { id } => admin::reverse(worker, id, parts, body).await,
        Route::Audit => admin::audit(worker, parts).await,
        Route::Cluster => cluster::show(worker, parts).await,
        Route::Livez => Ok(probes::livez()),
        Route::Readyz => Ok(probes::readyz(worker)),
        Route::Metrics => Ok(probes::metrics(worker)),
        Route::Version => Ok(probes::version()),
        Route::OpenApi => Ok(probes::openapi()),
        Route::Unknown => unreachable!("the router never gives it"),
    }
}
