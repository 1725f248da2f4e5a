"""What NVIDIA/RULER (commit c3f5e3b, wonderwords 3.0.1) makes, frozen.

A hash is of the JSON of [[input, outputs, length, answer_prefix], ...], the fields of the lines
that its scripts write. Tokenizers: "stdlib" is models/stdlib-3m, "books" books-6m, and "pieces" the
one of ruler_files.py, whose files the tasks of WITH_FILES read.
"""

# (tokenizer, task, length, seed) -> SHA-256 of five samples
OFFLINE = {
    ("pieces", "niah_single_1", 1024, 7): (
        "b8be211598d398954be4fbe131468d437f721629484a910c95b44f0eedc8a4a5"
    ),
    ("pieces", "niah_single_1", 2048, 42): (
        "68cc392a56d574dce94a09fdeb66fd2d0af87d3f201e284b98b262737a82fc78"
    ),
    ("pieces", "niah_single_1", 4096, 7): (
        "6c5594bfc8a2737ce330f40db6b4fd6be9d4f224cb9b41fcc989142c3b6d893a"
    ),
    ("pieces", "niah_multikey_2", 1024, 7): (
        "42a41ab88c0f7770b3d0f668d0e10f54416305cccbaf76d8f24cb4d6f34f19af"
    ),
    ("pieces", "niah_multikey_2", 2048, 42): (
        "707ef8b4aa51edf8dc447991ee28cf7de4740b50cb202700ac91af15406fd09e"
    ),
    ("pieces", "niah_multikey_2", 4096, 7): (
        "1d3cfaf47004168fa613062a10fc62e0d3bf425b8f02f32fddd57c632cb85bc2"
    ),
    ("pieces", "niah_multikey_3", 1024, 7): (
        "9e5941858e3dfbfc93d5014a396b42afd8862a06d52195a41dd13a4223dc1e21"
    ),
    ("pieces", "niah_multikey_3", 2048, 42): (
        "379e3c5d7f09db969bc3edfeee36cf422633d54f94b0d19b275e7eccba8c7442"
    ),
    ("pieces", "niah_multikey_3", 4096, 7): (
        "d25062da09b4e8552c55c374d645a102d52ceb9c6df99674763b6477af4e06fe"
    ),
    ("pieces", "vt", 1024, 7): ("e304f7ae77785841cbbf9b85596f8577408a83ce3f0ee57c1ccf3bb3e94a418a"),
    ("pieces", "vt", 2048, 42): (
        "6fc37d0352a76f8d2ab1dd13182ad895fdf1501abfb154189235f0a2d2b5a1a9"
    ),
    ("pieces", "vt", 4096, 42): (
        "81852edc6738d0b85b3c169c91a8aeb9b046e1912677f9ae387b32b80c86a34b"
    ),
    ("pieces", "fwe", 1024, 7): (
        "88d1a03fc5b0fb048f295e9e210b6d658cb0082c51627c30c8376351fcbf5944"
    ),
    ("pieces", "fwe", 2048, 42): (
        "cf713c87790a7fd090a8b6c0d4bae03c8d08a0090f4b230f3b22a50cead5ae4d"
    ),
    ("pieces", "fwe", 4096, 42): (
        "36ee8a282aff6f7113ee617fad72908001306e6bc37af22ad9a32bca99076047"
    ),
    ("stdlib", "niah_single_1", 1024, 7): (
        "a4b4f40c951338ad7586e9124be6c4431eb43b0fe448a3586ed91dda6ab83139"
    ),
    ("stdlib", "niah_single_1", 2048, 42): (
        "2d3713aeda1bb9c101347f5948de955b3502731492052dec22bfd6237b48a445"
    ),
    ("stdlib", "niah_multikey_2", 1024, 7): (
        "456dc6229f9282c87dbfdbbfcb1971eb7fc1576d67a34b4b14a033b9f30aae01"
    ),
    ("stdlib", "niah_multikey_2", 2048, 42): (
        "185152a224370a97245103b7b79ef66505b453ee8e2891071c50235f7aa75097"
    ),
    ("stdlib", "niah_multikey_3", 1024, 7): (
        "c34b5f9944d24b626a23809362f692159d22cfada9096c2df83b0a9f4918644b"
    ),
    ("stdlib", "niah_multikey_3", 2048, 42): (
        "c5250a03fdb77b05a1faea62db70da3ec3b6b242831dc6a4c0c6f150867119a4"
    ),
    ("stdlib", "vt", 1024, 7): ("433683bf844733893436d1d3c12792d4e0ec5108ac98f53a7dd721883e49d495"),
    ("stdlib", "vt", 2048, 42): (
        "914ca07a90f3459c8aaf4e957bd3b8dbc8b3bf5044c61b506a3f310fd96e17db"
    ),
    ("stdlib", "fwe", 1024, 7): (
        "36d73fc1b4f776fbedffd502765fc9fedb25b7fb22c35ec7a07d3f4a14419e91"
    ),
    ("stdlib", "fwe", 2048, 42): (
        "7a7e7802f01d7151343ddd8347092837f33ebe845bac1697df3d4ac43206bf0b"
    ),
    ("books", "niah_single_1", 1024, 7): (
        "c8e5c864d665049f7c7ba235f9eb40d496ccfb33aa49ecafd64ececc08bacd53"
    ),
    ("books", "niah_single_1", 2048, 42): (
        "3f41a12b4b0c76c413fad45485661ff50f66a8599ffce54a6a03972234378109"
    ),
    ("books", "niah_multikey_2", 1024, 7): (
        "af7a92518f8f7817d8109ade3d6ac3b7f3d127899a02ae37a4c5531f964ab504"
    ),
    ("books", "niah_multikey_2", 2048, 42): (
        "c2106bee70dc17fd1a0b23da39614b7068970acb6d40d27004d5f446d66de655"
    ),
    ("books", "niah_multikey_3", 1024, 7): (
        "e97b473a0c0c42e62230f01523f3f7618283286ba9252ad934beefae318cf83c"
    ),
    ("books", "niah_multikey_3", 2048, 42): (
        "b0b0bd4dc91d54169e1aa5e5b6e452a55b418c5728ca282d27e88056ff465620"
    ),
    ("books", "vt", 1024, 7): ("fe8d80d81a75cf69b4a85592b2d6c73399eceb4484e5c8c72171ba88da11a6ce"),
    ("books", "vt", 2048, 42): ("59f12f8f1bb9735445d655f07053449a68dc792cf544e872f6172b9ddc72295d"),
    ("books", "fwe", 1024, 7): ("d5ba6a3fb3456f375a35c564bbcfda35544829026663dca05a6731b37257be90"),
    ("books", "fwe", 2048, 42): (
        "abf546c0e6850ba7a1eea2983982ea15400a301fa4ad3559bc150cbb2df1bcde"
    ),
    ("pieces", "vt", 1024, 128): (
        "7dc6cb1fcf582654dfaa847c640f88b0af82938bba82a991b603ef5264f90cd8"
    ),
    ("pieces", "fwe", 512, 42): (
        "243463b502d1424a3ec15dd1c851f6436a83dcc558c6c3f18e872de038dd5db9"
    ),
    ("pieces", "niah_single_1", 8192, 42): (
        "24452a9ae6cd4d14950a9e7e29aad335929141b95da1ce20f01c10993b975563"
    ),
}

# (tokenizer, task, length, seed) -> (samples, SHA-256)
WITH_FILES = {
    ("pieces", "qa_1", 1024, 7): (
        5,
        "0c7be45fa3f562f7b87682cc464e1efe54b986cb1e795f991581c236369ef199",
    ),
    ("pieces", "qa_1", 2048, 42): (
        5,
        "b2b524171cdf77b08dccfc1a24ae01399841b7075d57c7c3c40da3a954eb4719",
    ),
    ("pieces", "qa_1", 4096, 42): (
        5,
        "4aa744e9f4fbf4798588eebabfdab37f75a9a70220697d07838c036aca48adaf",
    ),
    ("pieces", "qa_2", 1024, 7): (
        5,
        "5deeac593aa6fd45e22b87ee5a3065b83cee88c4996a746066c16c81f5fefd7b",
    ),
    ("pieces", "qa_2", 2048, 42): (
        5,
        "f12c3917a96c20fad5162346f099bca4e8bf51cef238951964dc23a1dc63cb45",
    ),
    ("pieces", "qa_2", 4096, 42): (
        5,
        "39e04edca949e7540c8389026918899894b97b08b99d3a0efa35ac586d61fcf1",
    ),
    ("pieces", "cwe", 1024, 7): (
        5,
        "f31aa350c31d2c7bea768766e0f9538ee3ef36dc4cd29033ce4d8b60642657b1",
    ),
    ("pieces", "cwe", 2048, 42): (
        5,
        "a854b7ff2ff1277823068c935c144ed1da6de6e60b23e25483d750b34806b0b6",
    ),
    ("pieces", "cwe", 4096, 42): (
        5,
        "3c595a136b5450cf9d335f803ce48072a3b81740808b2b4d09881862fda8e23e",
    ),
    ("pieces", "qa_1", 8192, 42): (
        5,
        "429e0734a434560af1d1f95a2c545e530080fae253de9d42cc24d6f552786a72",
    ),
    ("pieces", "cwe", 131072, 42): (
        2,
        "0bdd761c1724f63bb5cf8ad5bb97424b18b4e33277cb21a1de8939744a10a8c9",
    ),
    ("stdlib", "qa_1", 2048, 7): (
        5,
        "c28447950a208a2fcf81fea7ead53ab7b486b3d1dcb0574d82e4c404caa6b263",
    ),
    ("stdlib", "qa_2", 2048, 7): (
        5,
        "e2638f70d1255eaa6f72e503ec75c696376c969cc960f24c7d302a2f2c19f5dd",
    ),
    ("pieces", "niah_single_2", 2048, 42): (
        5,
        "79200fe3a082f884e68512b1f5f25f18f22e50fd9e7c6e9fe29632fb0227d41d",
    ),
    ("pieces", "niah_single_3", 2048, 42): (
        5,
        "feca2411e06e573037b75d665a3f7f665f3aaa577fe7b0572aa80e8e1ddde487",
    ),
    ("pieces", "niah_multikey_1", 2048, 42): (
        5,
        "94db20b6a5eabcb65f242fcf2ecfecd2cd7ab02c8016865a1566ea0e1bec1bdc",
    ),
    ("pieces", "niah_multivalue", 2048, 42): (
        5,
        "65bf8372bf08f2a050689f8726163905f14c9ff42657de911241140a6ece31b9",
    ),
    ("pieces", "niah_multiquery", 2048, 42): (
        5,
        "7247bd5ebfdf5b4f0c280a75d5783b41321a6fc5291bc2559ef3e2f422e26ae0",
    ),
    ("pieces", "niah_single_2", 4096, 7): (
        5,
        "92d58db915419b360b5faadd48244f830353793141f5c1262d2c603b0ecf325e",
    ),
    ("pieces", "niah_single_3", 4096, 7): (
        5,
        "25f26208d66fdb99c4556fb6d5480a8af615e5d2da2d1af975ff8fcf0f36b575",
    ),
    ("pieces", "niah_multikey_1", 4096, 7): (
        5,
        "a786cb4351f9bf0e328f8bcc0f8c72c5ea5254053fe51b3596d1df17895cfb78",
    ),
    ("pieces", "niah_multivalue", 4096, 7): (
        5,
        "a02051c5e3a9d2f1e0ae2ff7fcfc441c35c4db22dac5e0a3fe0ecf41b19a56ec",
    ),
    ("pieces", "niah_multiquery", 4096, 7): (
        5,
        "22ce6867bf43eae5b20c4855a0044878d06dd4d2e011b1505dedac97a5d8a78e",
    ),
}

# Percent by string_match_all and string_match_part of its scripts/eval/synthetic/constants.py, for
# the predictions and references that ruler_test.py draws from the seeds 0 to 39.
SCORES = [
    (21.43, 42.86),
    (0.0, 0.0),
    (0.0, 0.0),
    (31.25, 50.0),
    (29.17, 75.0),
    (21.33, 60.0),
    (45.0, 100.0),
    (44.17, 83.33),
    (15.0, 50.0),
    (39.58, 75.0),
    (0.0, 0.0),
    (20.42, 50.0),
    (41.67, 62.5),
    (25.0, 40.0),
    (16.67, 50.0),
    (6.25, 25.0),
    (48.61, 66.67),
    (23.15, 55.56),
    (33.33, 66.67),
    (50.0, 100.0),
    (33.33, 33.33),
    (23.33, 66.67),
    (48.33, 100.0),
    (25.0, 40.0),
    (44.29, 71.43),
    (23.81, 42.86),
    (26.67, 50.0),
    (17.29, 50.0),
    (60.0, 100.0),
    (24.44, 44.44),
    (46.11, 66.67),
    (100.0, 100.0),
    (58.33, 100.0),
    (33.33, 66.67),
    (18.15, 44.44),
    (26.3, 55.56),
    (38.89, 50.0),
    (16.67, 50.0),
    (26.19, 71.43),
    (45.0, 75.0),
]
