//! One binary; each module is one promise or one path through the product.

mod agent;
