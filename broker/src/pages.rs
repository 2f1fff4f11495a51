//! Pages for people in a browser. Whoever has the address sees them, so they know nothing: not even whether there is such a lease.

use crate::lease::LeaseId;

/// What its pages may do there: nothing but show text.
pub const POLICY: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where a person is told how to sign for a lease.
pub fn address(origin: &str, id: LeaseId) -> String {
    format!("{origin}/leases/{id}")
}

/// How to sign for a lease. What it asks for is shown by what signs it, from the very bytes that are signed.
pub fn lease(origin: &str, id: LeaseId) -> String {
    let origin = escaped(origin);
    format!(
        "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Sign for a lease</title>
</head>
<body>
<h1>Sign for a lease</h1>
<p>Somebody wants your signature for lease <code>{id}</code>. On your own machine, with your own key:</p>
<pre>BROKER_URL={origin} broker sign {id}</pre>
<p>It shows what you would sign, and a code. Compare the code with the one that you were told; if it is another one, or if you were
told none, do not sign, and ask. <code>broker pending</code> lists all that waits for you.</p>
<p>This page shows nothing of the lease: everybody can open it, and only what signs shows what is signed. It asks for nothing either.</p>
</body>
</html>
"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
