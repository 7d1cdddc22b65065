"""The built-in pre-training stage: one file a method, each of which reads top to bottom. A method's module has

    make_views(config) -> Views: from a decoded image to a sample; refuses masks and sizes that cannot be
    encoder_spec(spec, config) -> Spec of the encoder and
    encoder_options(config) -> options of `new_encoder`, where the method builds it in a way of its own
    check_batches(sizes, config), if not any size of a batch can be trained on
    build_model(encoder, config, num_classes) -> the model, with the encoder as its attribute `encoder` and new weights
    title(config) -> the row of such an encoder in the tables of transfer
    prepare(model, task, fabric, folder, progress), if something comes before training: components, a tokenizer

and its model takes a batch of samples ("images" uint8 (B, C, H, W), "labels" int64 (B,), -1 without, and what the
views add): in training mode it gives a dict of losses, means over the images; in eval mode a dict of float32 (B,), a
value for each image, which are averaged over the val images.
"""
