"""What `make test` leaves to `make slow`, and what both leave to `make full`.

CI runs `make test` and `make slow`. A test that is not here runs in `make test` with every row.
Rows are named by their ids.
"""

# Tests of more than some four seconds of a processor, whose property a cheaper test looks at too.
SLOW = {
    "analysis_mesh_test.py": ("test_eight_devices_equal_one",),
    "attention_objective_test.py": ("test_every_mesh_gives_the_same",),
    "attention_paper_test.py": ("test_what_is_masked_is_what_retrieves",),
    "convert_phi3_test.py": ("test_a_llama_as_phi3",),
    "evaluate_resume_test.py": ("test_a_run_that_ended_anywhere_goes_on_from_there",),
    "evaluate_test.py": ("test_rows_of_another_checkpoint_answer_the_same_items",),
    "evaluation_test.py": ("test_rows_over_eight_devices_score_as_on_one",),
    "extend_test.py": ("test_a_model_is_extended_and_goes_on",),
    "generate_test.py": ("test_a_pass_key_is_found_when_decoding_crosses_a_border",),
    "hosts_test.py": ("test_a_run_with_a_wrong_copy_stops",),
    "lora_test.py": ("test_a_step_is_the_same_on_every_mesh",),
    "mesh_test.py": ("test_what_is_kept_does_not_change_the_step",),
    "mixture_test.py": (
        "test_a_mixed_run_is_resumed_to_the_bit",
        "test_a_mixture_does_not_change_on_the_way",
    ),
    "needle_objective_test.py": ("test_the_loss_of_an_answer_has_the_slope_of_its_differences",),
    "needle_test.py": ("test_the_reference_of_books_6m",),
    "parity_test.py": ("test_perplexity_of_an_export",),
    "passkey_test.py": ("test_the_reference_of_books_6m",),
    "perplexity_test.py": ("test_the_reference_of_books_6m",),
    "protocols_test.py": (
        "test_the_branch_cube_longrope_leaves_windows_out_that_reach_beyond_the_text",
    ),
    "python_docs_test.py": ("test_the_page_runs",),
    "report_workdirs_test.py": ("test_workdirs_are_compared_on_common_axes",),
    "search_beside_test.py": ("test_another_objective_has_them_of_text_too",),
    "search_gradient_test.py": (
        "test_gradient_is_the_same_on_every_mesh",
        "test_a_descent_is_a_function_of_the_journal",
    ),
    "search_property_test.py": (
        "test_a_search_of_a_random_model_is_never_worse_than_its_baselines",
    ),
    "search_race_test.py": ("test_a_raced_search_is_resumed_to_the_bit",),
    "search_ramp_test.py": ("test_a_killed_climb_goes_on_with_the_same_bytes",),
    "search_verdict_test.py": ("test_a_killed_search_leaves_the_best_so_far",),
    "training_tasks_test.py": ("test_train_asks_a_task_as_it_asks_any_suite",),
    "training_test.py": ("test_a_run_goes_on_with_other_devices_and_eight_equal_one",),
}

# Matrices: each keeps the rows that differ most; an empty tuple leaves the whole test out.
CI_ROWS = {
    "convert_peft_test.py": {
        "test_a_training_is_written_as_adapters": ("llama tied with biases", "phi3 partial"),
    },
    # Every family by its logits; the rest by those that differ most. `make families` runs all.
    "families_test.py": {
        "test_logits": (
            "qwen3-yarn",
            "qwen3, biases, some layers slide-yarn",
            "ministral3-longrope",
            "smollm3, layers without rope slide-longrope",
            "olmo2-yarn",
            "olmo3-longrope",
            "gemma2-yarn",
            "gemma3-longrope",
            "granite-longrope",
            "stablelm-yarn",
            "qwen3_moe, some MLPs are dense-yarn",
            "mixtral-longrope",
            "qwen3_next-yarn",
            "qwen3_5_moe-longrope",
        ),
        "test_documents_of_a_row_equal_themselves_alone": (
            "olmo3",
            "gemma3",
            "ministral3",
            "qwen3_next",
        ),
        "test_greedy_text": (
            "qwen3",
            "ministral",
            "ministral3",
            "smollm3, layers without rope slide",
            "olmo2",
            "olmo3",
            "gemma2",
            "gemma3",
            "granite",
            "stablelm",
            "qwen3_moe, some MLPs are dense",
            "qwen3_next",
            "qwen3_5",
        ),
        "test_import_export_import_is_bit_equal": (
            "qwen3, biases, some layers slide",
            "ministral3",
            "smollm3",
            "gemma2",
            "stablelm",
            "qwen3_moe, some MLPs are dense",
            "mixtral",
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_moe",
        ),
        "test_an_extended_model_opens_in_transformers": (
            "ministral3",
            "smollm3",
            "gemma3",
            "qwen3_5_moe",
        ),
        "test_factors_that_change_with_the_length_are_not_for_sliding_layers": ("ministral",),
        "test_factors_go_into_a_folder_with_a_vision_part": ("qwen3_5_moe",),
    },
    "evaluate_resume_test.py": {
        "test_two_processes_that_are_killed_go_on_and_leave_the_same_bits": (),
    },
    "experts_test.py": {
        "test_gradients_of_a_step": ("qwen3_moe, some MLPs are dense-16", "mixtral-0"),
    },
    # Benchmarks of minutes; their command lines are tested, and two of them run in CI.
    "benchmarks_test.py": {
        "test_attention_runs_and_all_backends_agree": (),
        "test_a_small_model_is_trained_and_exported_and_goes_on": (),
        "test_transformers_classes_are_trained_on_those_rows_and_go_on": (),
    },
    "attention_objectives_test.py": {"test_it_runs_and_goes_on_with_another_seed": ()},
    "paper_tables_test.py": {
        "test_the_ablation_runs": (),
        "test_the_ablation_of_rows_runs_and_goes_on": (),
        "test_paper_tables_run_and_go_on": (),
    },
    "needle_test.py": {"test_the_reference_of_books_6m_at_long_lengths": ()},
    "search_property_test.py": {
        "test_one_flipped_sign_in_the_judging_of_random_models_would_be_seen": ()
    },  # a test of the other one
    "offload_test.py": {
        "test_layer_inputs_and_moments_go_to_the_host": ()
    },  # two minutes of libtpu
    "passkey_test.py": {"test_the_reference_of_books_6m_at_long_lengths": ()},
    "perplexity_test.py": {"test_the_reference_of_books_6m_at_long_lengths": ("2048-yarn",)},
    "analysis_frequencies_test.py": {
        "test_logits_are_the_sum_of_their_terms": (
            "partial, gqa",
            "window",
            "cross",
            "some queries",
        ),
    },
    "analysis_mesh_test.py": {
        "test_eight_devices_equal_one": ("some queries", "ring of 8"),
        "test_masks_that_no_ring_of_attention_has": ("both ways-ring", "across-all_gather"),
    },
    "analysis_real_test.py": {
        "test_every_mask_on_attention_of_books": ("causal", "both ways, packed"),
    },
    "analysis_streaming_test.py": {
        "test_equals_the_definition": ("window", "some queries", "packed", "across"),
    },
    "attention_objective_test.py": {
        "test_every_mesh_gives_the_same": ("heads",),
        "test_the_answer_is_weighed_in": ("pattern",),
        "test_what_does_not_change_costs_nothing": ("entropy_shift",),
    },
    # The whole program, two minutes; its parts and its dry run are tested.
    "attention_paper_test.py": {
        "test_the_program_leaves_the_papers_figures_and_findings": (),
        "test_the_page_reads_what_the_program_wrote": (),
        "test_a_finished_program_does_nothing_again": (),
        "test_a_measurement_that_is_not_there_is_made_and_is_the_same": (),
    },
    "attention_spread_test.py": {
        "test_equals_the_definition_in_float64": (
            "ring-1-sizes0-4-2-packed",
            "ring-1-sizes3-4-2-blind",
            "ring-1-sizes16-4-2-make_mask16",
            "usp-2-sizes21-4-2-make_mask21",
            "all_gather-1-sizes6-4-1-shorter",
            "ulysses-1-sizes9-8-2-make_mask9",
            "usp-2-sizes12-4-2-packed",
            "usp-4-sizes14-4-2-causal",
        ),
        "test_bfloat16_is_no_worse_than_on_one_device": ("ring-1",),
    },
    "attention_test.py": {
        "test_gradients": (
            "flash-packed window",
            "flash-no key",
            "blockwise-no key",
            "blockwise-packed window",
            "blockwise-permuted",
            "blockwise-cross",
            "blockwise-decode",
        ),
    },
    "generation_test.py": {
        "test_a_mesh_gives_what_one_device_gives": (
            "{'data': 2, 'context': 2, 'tensor': 2}-{'vocab_size': 265, 'sliding_window': 20}",
        ),
        "test_sliding_window": ("20",),
        "test_factors_of_each_layer": ("{'data': 2, 'context': 2, 'tensor': 2}",),
    },
    "decoder_probe_test.py": {
        "test_hidden_states_are_those_of_hidden_to_the_bit": ("full-8",),
    },
    "decoder_test.py": {
        "test_settings_do_not_change_the_gradient": (
            "reference-full-0",
            "blockwise-save_attention-8",
            "blockwise-none-7",
            "blockwise-offload-0",
        ),
        "test_memory_of_a_gradient_is_linear_in_length": ("full",),
    },
    "longppl_test.py": {
        "test_the_numbers_of_the_package": (
            "('stdlib', 'books', 32, 8, 2.0, -2.0)",
            "('books', 'stdlib', 48, 16, 2.0, -2.0)",
        ),
    },
    "hosts_test.py": {
        "test_a_killed_process_ends_the_others_and_a_restart_ends_the_same": ("1",),
    },
    "lora_test.py": {"test_merged_weights": ("3-6.0",)},
    "mesh_test.py": {
        "test_a_step_is_the_same_on_every_mesh": (
            "blockwise-{'data': 4, 'fsdp': 2}-{}",
            "usp-{'context': 4, 'tensor': 2}-{'ulysses': 2, 'mlp_chunk': 7}",
        ),
        "test_a_step_of_an_odd_decoder": (
            "ring-{'context': 2, 'fsdp': 2, 'tensor': 2}-{'mlp_chunk': 7}",
        ),
        "test_a_step_of_a_hybrid": (
            "ring-{'fsdp': 2, 'context': 2, 'tensor': 2}-{'mlp_chunk': 7}",
        ),
    },
    "mixture_test.py": {
        "test_a_mixed_batch_is_the_weighted_mean_of_its_rows": (
            "None-blockwise-True",
            "{'data': 2, 'context': 4}-ring-True",
        ),
    },
    "needle_objective_test.py": {
        "test_answers_cost_the_same_on_every_mesh": ("{'context': 4}-ring",),
    },
    "parity_test.py": {"test_books_6m": ("512",)},
    "protocols_test.py": {
        "test_sliding_windows_are_those_of_yarn": ("64-16-True", "128-50-False", "64-64-True"),
    },
    "recipe_process_test.py": {
        "test_a_recipe_killed_in_its_stages_equals_an_undisturbed_one": (),
        "test_two_processes_leave_what_one_does": (),
    },
    "recipe_test.py": {
        "test_a_stage_that_was_killed_goes_on_to_the_same": ("finetune_4x",),
    },
    "search_evaluator_test.py": {
        "test_losses_are_the_same_on_every_mesh": ("{'context': 4}-ring",),
        "test_memory_estimate_bounds_what_xla_allots": ("256-reference", "1024-blockwise"),
    },
    "search_gradient_test.py": {"test_gradient_is_the_same_on_every_mesh": ("sizes1-ring",)},
    "topology_compile_test.py": {"test_the_tpu_compiler_hides_every_hop": ("v5e:2x2",)},
    "training_test.py": {
        "test_a_run_that_is_stopped_and_resumed_equals_an_undisturbed_one": ("4", "8"),
    },
}


def is_slow(file: str, test: str) -> bool:
    return test in SLOW.get(file, ())


def is_left_out(file: str, test: str, row: str | None) -> bool:
    """Says whether CI leaves a test to `make full`; `row` is its id in brackets."""
    rows = CI_ROWS.get(file, {}).get(test)
    return rows is not None and row not in rows


def named(file: str) -> set[tuple[str, str | None]]:
    """Returns (test, row) of all that is said here of a file."""
    rows = {(test, row) for test in CI_ROWS.get(file, {}) for row in CI_ROWS[file][test]}
    return rows | {(test, None) for test in (*SLOW.get(file, ()), *CI_ROWS.get(file, ()))}
