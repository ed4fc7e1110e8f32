//! What we say of an object, against what it says.

use serde_json::Value;

/// Whether `observed` already says all that `wanted` says. What `wanted` is silent on (defaults, other people's
/// fields) does not matter. Lists are compared item by item.
pub fn says_all(wanted: &Value, observed: &Value) -> bool {
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => {
            wanted.iter().all(|(key, value)| observed.get(key).is_some_and(|found| says_all(value, found)))
        }
        (Value::Array(wanted), Value::Array(observed)) => {
            wanted.len() == observed.len()
                && wanted.iter().zip(observed).all(|(left, right)| says_all(left, right))
        }
        (wanted, observed) => wanted == observed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_apiserver_are_no_difference_but_a_changed_value_is() {
        let wanted = json!({"spec": {"ports": [{"port": 1}]}});
        assert!(says_all(
            &wanted,
            &json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "type": "ClusterIP"}})
        ));
        assert!(!says_all(&wanted, &json!({"spec": {"ports": [{"port": 2}]}})));
        assert!(!says_all(&wanted, &json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}})));
        assert!(!says_all(&wanted, &json!({})));
    }
}
