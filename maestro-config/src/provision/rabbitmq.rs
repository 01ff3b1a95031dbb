//! RabbitMQ 3.10 and later: a user per service and its permissions in the platform's vhost.

use serde_json::json;

use super::encode::{percent, rabbit_hash};
use super::resources::ServiceResources;
use crate::secret::Secret;

/// The permission patterns of a user in a vhost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Permissions {
    /// Names it may declare and delete.
    pub configure: String,
    /// Exchanges it may publish to, queues it may bind.
    pub write: String,
    /// Queues it may consume, exchanges it may bind to.
    pub read: String,
}

/// A service may do everything under its own name, and subscribe to everybody's events.
pub fn permissions(resources: &ServiceResources) -> Permissions {
    // A service's name holds no character with a meaning in a pattern.
    let own = format!(r"^{}\.", resources.service());
    Permissions {
        configure: own.clone(),
        write: own.clone(),
        read: format!(r"{own}|\.events$"),
    }
}

/// One request to the management API.
#[derive(Clone, Debug)]
#[must_use]
pub struct ApiRequest {
    /// `PUT` or `DELETE`.
    pub method: &'static str,
    /// Path from the root of the server, percent-encoded: `/api/vhosts/maestro`.
    pub path: String,
    /// JSON; empty for `DELETE`. Holds the hash of a password.
    pub body: Secret<String>,
}

/// Creates the vhost and the user, and gives the user its permissions. Every request can be repeated;
/// 201 and 204 are success.
pub fn service_requests(resources: &ServiceResources) -> Vec<ApiRequest> {
    let vhost = percent(&resources.vhost);
    let user = percent(&resources.rabbit_user);
    let Permissions {
        configure,
        write,
        read,
    } = permissions(resources);
    vec![
        put(format!("/api/vhosts/{vhost}"), &json!({})),
        put(format!("/api/users/{user}"), &user_body(resources)),
        put(
            format!("/api/permissions/{vhost}/{user}"),
            &json!({ "configure": configure, "write": write, "read": read }),
        ),
    ]
}

/// Removes the user and the vhost with everything in it. For sandboxes: the platform's vhost is
/// everybody's.
pub fn drop_requests(resources: &ServiceResources) -> Vec<ApiRequest> {
    let delete = |path: String| ApiRequest {
        method: "DELETE",
        path,
        body: Secret::new(String::new()),
    };
    vec![
        delete(format!("/api/vhosts/{}", percent(&resources.vhost))),
        delete(format!("/api/users/{}", percent(&resources.rabbit_user))),
    ]
}

/// The service's entries in `definitions.json`.
pub fn definitions(resources: &[ServiceResources]) -> serde_json::Value {
    let mut vhosts: Vec<&str> = resources.iter().map(ServiceResources::vhost).collect();
    vhosts.sort_unstable();
    vhosts.dedup();
    let vhosts: Vec<_> = vhosts.iter().map(|name| json!({ "name": name })).collect();
    let users: Vec<_> = resources
        .iter()
        .map(|service| {
            let mut user = user_body(service);
            user["name"] = json!(service.rabbit_user());
            user
        })
        .collect();
    let permissions: Vec<_> = resources
        .iter()
        .map(|service| {
            let own = permissions(service);
            json!({
                "user": service.rabbit_user(), "vhost": service.vhost(),
                "configure": own.configure, "write": own.write, "read": own.read,
            })
        })
        .collect();
    json!({ "vhosts": vhosts, "users": users, "permissions": permissions })
}

fn user_body(resources: &ServiceResources) -> serde_json::Value {
    json!({
        "password_hash": rabbit_hash(&resources.rabbit_user, resources.passwords.messaging.expose()),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "",
    })
}

fn put(path: String, body: &serde_json::Value) -> ApiRequest {
    ApiRequest {
        method: "PUT",
        path,
        body: Secret::new(body.to_string()),
    }
}
