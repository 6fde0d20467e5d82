//! A request taken apart as far as its types go, without a socket and without an operation: for `tests/decoders` alone.

use super::call::{Call, context};
use super::route::route;
use ovs_api::{Problem, Request, for_each_operation};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::{Debug, Display};
use std::str::FromStr;
use warp::http::HeaderMap;

/// What a request says: each parameter, the query and the body of its operation, parsed. Panics when something that was
/// taken does not come back from its own text.
pub fn request(
    method: &str,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<String, Problem> {
    let route = route(method, path).map_err(|no_route| *no_route.problem)?;
    let context = context(route.operation, headers)?;
    let call = Call {
        operation: route.operation,
        context,
        params: route.params,
        query: query.to_owned(),
        body: body.to_owned(),
    };
    call.check_surplus()?;
    typed(&call)
}

fn param<T: FromStr<Err: Display> + Display + Debug + PartialEq>(
    call: &Call,
    name: &str,
) -> Result<String, Problem> {
    let value: T = call.param(name)?;
    assert!(
        value.to_string().parse::<T>().is_ok_and(|again| again == value),
        "{name} {value:?} does not come back from its text"
    );
    Ok(format!("{value:?}"))
}

fn document<T: Request + Serialize + DeserializeOwned + Debug + PartialEq>(
    value: Result<T, Problem>,
) -> Result<String, Problem> {
    let value = value?;
    let text = serde_json::to_vec(&value).unwrap_or_default();
    let again: Option<T> = serde_json::from_slice(&text).ok();
    assert!(
        again.is_some_and(|again| again == value && again.check().is_ok()),
        "{value:?} does not come back from its JSON"
    );
    Ok(format!("{value:?}"))
}

macro_rules! typed_rows {
    (
        served { $(
            $(#[doc = $doc:literal])+
            $id:ident: $method:ident $path:literal $(path($($param:ident: $Param:ty),+))? $(query($Query:ty))?
                $(body($Body:ty))? -> $Reply:ty, may [$($kind:ident),*];
        )* }
        later { $(
            $(#[doc = $later_doc:literal])+
            $later_id:ident: $later_method:ident $later_path:literal $(path($($later_param:ident: $LaterParam:ty),+))?
                $(query($LaterQuery:ty))? $(body($LaterBody:ty))? -> $LaterReply:ty, may [$($later_kind:ident),*]
                until $until:literal;
        )* }
        streams { $($streams:tt)* }
    ) => {
        fn typed(call: &Call) -> Result<String, Problem> {
            use ovs_api::*;
            use {ovs_units::Name, uuid::Uuid};
            let parts: Vec<String> = match call.operation.id {
                $(stringify!($id) => vec![
                    $($(param::<$Param>(call, stringify!($param))?,)+)?
                    $(document(call.query::<$Query>())?,)?
                    $(document(call.body::<$Body>())?,)?
                ],)*
                $(stringify!($later_id) => vec![
                    $($(param::<$LaterParam>(call, stringify!($later_param))?,)+)?
                    $(document(call.query::<$LaterQuery>())?,)?
                    $(document(call.body::<$LaterBody>())?,)?
                ],)*
                _ => Vec::new(),
            };
            Ok(format!("{} {}", call.operation.id, parts.join(" ")))
        }
    };
}

for_each_operation!(typed_rows);
