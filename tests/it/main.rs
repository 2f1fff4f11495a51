//! One binary; each module is one promise or one path through the product.

mod agent;
mod cost;
mod failing;
mod secrets;
mod sign;
mod surface;
