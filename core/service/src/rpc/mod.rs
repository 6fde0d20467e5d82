//! The HTTP door of ovsd.
//!
//! ```text
//!  entrance (unix, TLS) ─▶ connection: time-outs, sizes ─▶ access ─▶ route: the table's row
//!                                                                        ▼
//!  answer ◀── reply or problem ◀── Core::<operation id> ◀── dispatch ◀── call: typed parameters, query, body, headers
//! ```
//!
//! Invariants: what reaches an operation has passed its types and its `check`; a change that has begun runs to its end
//! whether or not its client stays; every connection, header, body, stalled reader has a bound in bytes or in time; a
//! panic in an operation is that request's 500.
//!
//! Not here: what the operations do (`core`), types and the table (`ovs-api`), the socket's mode and owner.

mod answer;
mod call;
mod connection;
#[doc(hidden)]
pub mod decoders;
mod entrance;
mod route;
mod serve;
mod tokens;

pub use call::{Call, RequestContext};
pub use entrance::{Entrance, TlsEntrance};
pub use serve::serve;
pub use tokens::Tokens;

pub(crate) use answer::Answer;

use futures_util::future::BoxFuture;
use ovs_api::Problem;
use std::sync::Arc;

/// Something that has every operation of the table: made by `serve_operations!`.
pub trait Dispatch: Send + Sync + 'static {
    /// Calls the operation.
    fn dispatch(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Answer, Problem>>;
}

/// Makes a type serve the RPC: `serve_operations!(Core)` calls `Core::<operation id>` for each row of the table. A
/// method that is missing, or has other parameters than the row says, does not compile.
macro_rules! serve_operations {
    ($served:ty) => {
        const _: () = {
            #[allow(unused_imports, reason = "below this module the macro is in sight already")]
            use $crate::rpc::serve_rows;
            type Served = $served;
            ovs_api::for_each_operation!(serve_rows);
        };
    };
}

macro_rules! serve_rows {
    (
        served { $(
            $(#[doc = $doc:literal])+
            $id:ident: $method:ident $path:literal $(path($($param:ident: $Param:ty),+))? $(query($Query:ty))?
                $(body($Body:ty))? -> $Reply:ty, may [$($kind:ident),*];
        )* }
        later { $($later:tt)* }
        streams { $($streams:tt)* }
    ) => {
        use ovs_api::*;
        #[allow(unused_imports, reason = "the rows name what they need")]
        use {ovs_units::Name, uuid::Uuid};

        impl $crate::rpc::Dispatch for Served {
            fn dispatch(
                self: std::sync::Arc<Self>,
                call: $crate::rpc::Call,
            ) -> futures_util::future::BoxFuture<'static, Result<$crate::rpc::Answer, Problem>> {
                match call.operation.id {
                    $(stringify!($id) => Box::pin(async move {
                        let reply: $Reply = self
                            .$id(
                                $($(call.param::<$Param>(stringify!($param))?,)+)?
                                $(call.query::<$Query>()?,)?
                                $(call.body::<$Body>()?,)?
                                &call.context,
                            )
                            .await?;
                        $crate::rpc::Answer::json(&reply)
                    }),)*
                    "stream_events" => Box::pin(async move {
                        let stream: EventStream = self.stream_events(&call.context).await?;
                        Ok($crate::rpc::Answer::events(stream))
                    }),
                    "get_metrics" => Box::pin(async move {
                        let text: MetricsText = self.get_metrics(&call.context).await?;
                        Ok($crate::rpc::Answer::metrics(text))
                    }),
                    _ => Box::pin(async move { call.without_core() }),
                }
            }
        }
    };
}

pub(crate) use {serve_operations, serve_rows};

#[cfg(test)]
mod tests;
