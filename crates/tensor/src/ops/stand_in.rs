//! A loss by another's gradient, or by one that its caller has formed.

use super::cross_entropy::record_gradients;
use crate::{Ctx, Tensor};

/// One number, `value`, whose gradient is that of `surrogate [1]`.
///
/// For a loss `L(ℓ)` of log-probabilities ℓ that a forward pass makes: `surrogate = Σ w · (-ℓ)` with `w = -∂L/∂ℓ` held
/// constant has L's gradient, and the value of nothing in particular; what is logged and watched is `L`.
pub fn stand_in(ctx: &mut Ctx, surrogate: &Tensor, value: f32) -> Tensor {
    assert_eq!(surrogate.len(), 1, "a loss is one number");
    let loss = Tensor::new(&[1], vec![value]);
    if ctx.records(&[surrogate]) {
        let surrogate = surrogate.handle();
        ctx.record(&loss, move |back, d_loss| {
            back.accumulate(&surrogate, d_loss)
        });
    }
    loss
}

/// One number, `value`, whose gradient by each of `inputs` is the tensor beside it: a loss of a few numbers that a forward pass
/// makes, differentiated by hand.
pub fn given(ctx: &mut Ctx, value: f32, inputs: Vec<(&Tensor, Tensor)>) -> Tensor {
    for (input, gradient) in &inputs {
        assert_eq!(input.shape(), gradient.shape(), "a gradient of its input");
    }
    let loss = Tensor::new(&[1], vec![value]);
    let of: Vec<&dyn crate::Node> = inputs.iter().map(|(input, _)| *input as _).collect();
    if ctx.records(&of) {
        record_gradients(ctx, &loss, inputs);
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gradients;
    use crate::ops::check::{check_gradients, context, random};
    use crate::ops::cross_entropy;

    #[test]
    fn the_value_is_given_and_the_gradient_the_surrogates() {
        let (hidden, table) = (random(&[3, 4], 1), random(&[7, 4], 2));
        let gradient = |value: Option<f32>| {
            let mut ctx = context();
            ctx.start_tape([hidden.id(), table.id()]);
            let terms = Default::default();
            let weights = [0.5, -1.0, 2.0];
            let loss = cross_entropy(&mut ctx, &hidden, &table, &[1, 6, 3], &weights, &terms).loss;
            let loss = value.map_or(loss.clone(), |value| stand_in(&mut ctx, &loss, value));
            let mut gradients = Gradients::default();
            ctx.backward(&loss, 1.0, &mut gradients);
            let of = |tensor: &Tensor| gradients.get(tensor).unwrap().data().to_vec();
            (loss.data()[0], of(&hidden), of(&table))
        };
        let (own, stands) = (gradient(None), gradient(Some(42.0)));
        assert_eq!(stands.0, 42.0);
        assert_eq!((own.1, own.2), (stands.1, stands.2));
    }

    #[test]
    fn a_given_gradient_flows_on() {
        // L = Σ y², y = x Wᵀ
        check_gradients(&[random(&[3, 4], 1), random(&[2, 4], 2)], |ctx, x| {
            let y = crate::ops::linear(ctx, &x[0], &x[1]);
            let square = y.data().iter().map(|y| y * y).sum();
            let slope = Tensor::from_fn(y.shape(), |at| 2.0 * y.data()[at]);
            given(ctx, square, vec![(&y, slope)])
        });
    }
}
