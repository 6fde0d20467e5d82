//! From a method and a path to a row of the table.

use ovs_api::{OPERATIONS, Operation, Problem, ProblemKind};
use percent_encoding::percent_decode_str;

/// A row and what its path's parameters are here.
#[derive(Debug)]
pub(super) struct Route {
    pub operation: &'static Operation,
    /// Decoded, in the order of the path.
    pub params: Vec<(&'static str, String)>,
}

/// Why there is no row.
#[derive(Debug)]
pub(super) struct NoRoute {
    pub problem: Box<Problem>,
    /// The methods that the path has; none when nothing has this path.
    pub allow: Vec<&'static str>,
}

/// The row for a method and a path. Where `/v1/vpools/recover` and `/v1/vpools/{vpool}` both fit, words win.
pub(super) fn route(method: &str, path: &str) -> Result<Route, NoRoute> {
    let mut fitting: Vec<Route> = OPERATIONS
        .iter()
        .filter_map(|operation| params(operation.path, path).map(|params| Route { operation, params }))
        .collect();
    fitting.sort_by_key(|route| route.params.len());
    let allowed: Vec<&'static str> = fitting.iter().map(|route| route.operation.method.as_str()).collect();
    if let Some(route) = fitting.into_iter().find(|route| route.operation.method.as_str() == method) {
        return Ok(route);
    }
    let shown: String = path.chars().take(200).collect();
    if allowed.is_empty() {
        let detail = format!("there is nothing at {shown:?}; GET /openapi.json lists what there is");
        let problem = Box::new(Problem::new(ProblemKind::NotFound, detail));
        return Err(NoRoute { problem, allow: allowed });
    }
    let method: String = method.chars().take(40).collect();
    let problem =
        Problem::field("method", method, &format!("{} on {shown}", allowed.join(", "))).with_status(405);
    Err(NoRoute { problem: Box::new(problem), allow: allowed })
}

/// The parameters of a path that fits the template. A segment that is no UTF-8 once decoded fits none.
fn params(template: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    let mut params = Vec::new();
    loop {
        let (wanted, given) = match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(wanted), Some(given)) => (wanted, given),
            _ => return None,
        };
        match wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) if !given.is_empty() => {
                params.push((name, percent_decode_str(given).decode_utf8().ok()?.into_owned()));
            }
            None if wanted == given => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, expected: Result<(&str, &[&str]), u16>) {
        match (route(method, path), expected) {
            (Ok(route), Ok((id, params))) => {
                assert_eq!(route.operation.id, id, "{method} {path}");
                let values: Vec<&str> = route.params.iter().map(|(_, value)| value.as_str()).collect();
                assert_eq!(values, params, "{method} {path}");
            }
            (Err(NoRoute { problem, .. }), Err(status)) => {
                assert_eq!(problem.status, status, "{method} {path}");
            }
            (found, _) => panic!("{method} {path}: {found:?}"),
        }
    }

    #[test]
    fn paths_lead_to_operations() {
        check("GET", "/v1/vdisks", Ok(("list_vdisks", &[])));
        check("GET", "/v1/vdisks/default:x", Ok(("get_vdisk", &["default:x"])));
        check("GET", "/v1/vdisks/default%2Fx", Ok(("get_vdisk", &["default/x"])));
        check("DELETE", "/v1/vdisks/a:b/snapshots/s", Ok(("delete_snapshot", &["a:b", "s"])));
        check("POST", "/v1/vpools/recover", Ok(("recover_lost_vpool", &[])));
        check("GET", "/v1/vpools/recover", Ok(("get_vpool", &["recover"])));
        check("POST", "/v1/vpools/recover/recover", Ok(("recover_vpool", &["recover"])));
        check("GET", "/openapi.json", Ok(("get_openapi", &[])));
    }

    #[test]
    fn other_paths_and_methods_are_problems() {
        for path in [
            "/",
            "",
            "/v1",
            "/v1/",
            "/v1/vdisks/",
            "/v1//vdisks",
            "/v1/vdisks/x/y",
            "/v2/vdisks",
            "/v1/vdisks/%ff",
        ] {
            check("GET", path, Err(404));
        }
        for (method, path) in
            [("PUT", "/v1/vdisks"), ("get", "/v1/vdisks"), ("HEAD", "/v1/status"), ("POST", "/metrics")]
        {
            check(method, path, Err(405));
        }
    }

    #[test]
    fn every_operation_can_be_reached() {
        for operation in OPERATIONS {
            let path: Vec<&str> =
                operation.path.split('/').map(|s| if s.starts_with('{') { "x" } else { s }).collect();
            let found = route(operation.method.as_str(), &path.join("/")).unwrap();
            assert_eq!(found.operation.id, operation.id);
        }
    }
}
