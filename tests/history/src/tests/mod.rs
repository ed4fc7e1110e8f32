//! The checker against histories made by hand, and the whole against a real etcd.

mod made;
mod real;
