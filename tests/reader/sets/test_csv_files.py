import numpy as np
import pytest

from metric_learning.reader import ImageError, load_image_set, splits_of


@pytest.fixture
def write(tmp_path, draw):
    """A function that writes the text of a CSV file; the images a.png to f.png are there."""
    for seed, name in enumerate("abcdef"):
        draw(tmp_path / f"{name}.png", seed)

    def write_text(text, encoding="utf-8"):
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        return tmp_path / "list.csv"

    return write_text


CLOSED = "path,label,split\na.png,10,train\nb.png,9,test\nc.png,9,train\nd.png,10,test\n"
FOLDS = "label,fold,path\ncat,0,a.png\ndog,1,b.png\ncat,1,c.png\nowl,,d.png\ndog,2,e.png\n"


def test_closed_set(write, tmp_path):
    train, test = (
        load_image_set("csv", None, split, csv=write(CLOSED)) for split in ("train", "test")
    )
    assert train.paths == [str(tmp_path / "a.png"), str(tmp_path / "c.png")]
    assert train.class_names == test.class_names == {0: "9", 1: "10"}  # numbers by their value
    assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [0, 1]
    assert train.labels.dtype == np.int64 and test.is_self_retrieval
    assert (train.name, train.read_image(0).shape) == ("csv", (6, 8, 3))


def test_open_set_numbers_test_classes_among_all(write):
    file = write("path,label,split\na.png,d,train\nb.png,a,test\nc.png,b,train\nd.png,c,test\n")
    train, test = (load_image_set("csv", None, split, csv=str(file)) for split in ("train", "test"))
    assert train.labels.tolist() == [1, 0] and train.class_names == {0: "b", 1: "d"}
    assert test.labels.tolist() == [0, 2] and test.class_names == {0: "a", 2: "c"}
    chosen = load_image_set("csv", None, "test", csv=file, test_classes="2")
    assert chosen.class_names == {2: "c"}


@pytest.mark.parametrize(
    ("fold", "train", "test"), [(0, "bce", "a"), (1, "ae", "bc"), (2, "abc", "e")]
)
def test_the_fold_is_tested_and_the_others_train(write, tmp_path, fold, train, test):
    for split, names in (("train", train), ("test", test)):
        image_set = load_image_set("csv", None, split, csv=write(FOLDS), fold=fold)
        assert image_set.paths == [str(tmp_path / f"{name}.png") for name in names]


def test_folds_take_the_place_of_the_split(write):
    file = write("path,label,split,fold\na.png,x,train,0\nb.png,x,train,1\nc.png,y,test,\n")
    assert load_image_set("csv", None, "test", csv=file).class_names == {1: "y"}
    assert load_image_set("csv", None, "test", csv=file, fold=1).class_names == {0: "x"}


def test_names_with_commas_quotes_newlines_and_a_byte_order_mark(write, draw, tmp_path):
    draw(tmp_path / 'é, "b".png', 9)
    text = 'path,label,split\r\n"é, ""b"".png","red,\nbig",train\r\n\r\nb.png,x,test\r\n'
    image_set = load_image_set("csv", None, "train", csv=write(text, "utf-8-sig"))
    assert image_set.paths == [str(tmp_path / 'é, "b".png')] and image_set.class_names == {
        0: "red,\nbig"
    }


def test_data_dir_is_where_the_paths_start(write, tmp_path, draw):
    draw(tmp_path / "images" / "a.png")
    image_set = load_image_set(
        "csv", tmp_path / "images", "train", csv=write(CLOSED.replace("c.png", "/c"))
    )
    assert image_set.paths == [str(tmp_path / "images" / "a.png"), "/c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: expected the names of the columns, path and label among them, found ''"),
        ("path|label\n", ":1: expected the names of the columns"),
        ("path;label\n", ": expected images, found only the names of the columns"),
        ("path,label,path\n", ":1: expected different columns"),
        ("path,label,split\n\n", ": expected images, found only the names of the columns"),
        (CLOSED + "e.png,9\n", ":6: expected 3 columns (path,label,split), found 2: 'e.png,9'"),
        (CLOSED + "\n,9,test\n", ":7: expected a path, found an empty cell"),
        (CLOSED + "e.png,,test\n", ":6: expected a label, found an empty cell"),
        (
            CLOSED + "e.png,9,dev\n",
            ":6: expected train, val, test, query or gallery as split, found 'dev'",
        ),
        (CLOSED + '"e.png"x,9,test\n', ":6: expected CSV, found"),
        (
            'path,label,split\n"a\n.png",x,train\nb.png,x,no\n',
            ":4: expected train, val, test, query",
        ),
        ("path,label\na.png,x\n", " has no column split: add it with 'python -m data.prepare"),
        (FOLDS, " has no column split: choose the fold to test on with --fold"),
    ],
)
def test_a_broken_file_is_named_with_its_line(write, text, message):
    file = write(text)
    with pytest.raises(ValueError) as caught:
        load_image_set("csv", None, "train", csv=file)
    assert f"{file}{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLOSED, "has no column fold, which --fold=3 needs"),
        (FOLDS, "--fold=3: .* has folds 0, 1, 2"),
        (FOLDS.replace(",1,", ",1.5,"), ":3: expected a number or nothing as fold, found '1.5'"),
    ],
)
def test_a_wrong_fold_is_an_error(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_image_set("csv", None, "train", csv=write(text), fold=3)


def test_one_fold_leaves_no_training_images(write):
    file = write("path,label,fold\na.png,x,0\n")
    with pytest.raises(ValueError, match="no images in the train split"):
        load_image_set("csv", None, "train", csv=file, fold=0)


def test_a_file_that_is_no_text_or_missing_is_an_error(write, tmp_path):
    with pytest.raises(ValueError, match="expected a UTF-8 CSV file"):
        load_image_set("csv", None, "train", csv=write(CLOSED.replace("10", "é"), "latin-1"))
    with pytest.raises(FileNotFoundError, match="csv: no file .*no.csv; write one with 'python -m"):
        load_image_set("csv", None, "train", csv=tmp_path / "no.csv")


def test_the_options_belong_to_the_data_set(write, tmp_path):
    with pytest.raises(ValueError, match="--dataset=csv needs --csv=FILE with columns path,label"):
        load_image_set("csv", None, "train")
    with pytest.raises(ValueError, match="--csv is for --dataset=csv; --dataset=folder does not"):
        load_image_set("folder", tmp_path, "train", csv=write(CLOSED))
    with pytest.raises(ValueError, match="--fold is for --dataset=csv"):
        load_image_set("folder", tmp_path, "train", fold=0)
    with pytest.raises(ValueError, match="--train_list is for --dataset=list; --dataset=csv"):
        load_image_set("csv", None, "train", csv=write(CLOSED), train_list="x.txt")


def test_all_images_are_looked_for_and_where_all_are_missing_the_folder_flag_is_named(write):
    some = load_image_set("csv", None, "test", csv=write(CLOSED.replace("d.png", "z.png")))
    with pytest.raises(ImageError, match=r":5: no image .*z.png \(1 of 2 images of the test split"):
        some.require_whole()
    assert some.require_whole(may_miss=True) is some
    text = CLOSED.replace("b.png", "y.png").replace("d.png", "z.png")
    every = load_image_set("csv", None, "test", csv=write(text))
    with pytest.raises(ImageError, match=":3: no image .* relative to as --data_dir"):
        every.require_whole()


VAL = "path,label,split\na.png,1,train\nb.png,2,train\nc.png,3,val\nd.png,10,test\n"


def test_a_val_split_is_one_of_its_own_and_all_is_everything(write, tmp_path):
    file = write(VAL)
    assert splits_of("csv", None, csv=file) == ("train", "val", "test")
    assert load_image_set("csv", None, "val", csv=file).class_names == {2: "3"}
    everything = load_image_set("csv", None, "all", csv=file)
    assert everything.labels.tolist() == [0, 1, 2, 3] and len(everything) == 4
    assert load_image_set("csv", None, "all", csv=write(FOLDS), fold=0).num_classes == 3


def test_val_is_the_test_where_there_is_no_other(write):
    file = write(VAL.replace("test", "Validation"))
    test = load_image_set("csv", None, "test", csv=file)
    assert test.class_names == {2: "3", 3: "10"} and splits_of("csv", None, csv=file) == (
        "train",
        "test",
    )
    assert test.notes == (f"val is the test split: {file} has no test",)
    assert load_image_set("csv", None, "val", csv=file).paths == test.paths
    with pytest.raises(ValueError, match="no images in the val split"):
        load_image_set("csv", None, "val", csv=write(CLOSED))


def test_classes_of_numbers_are_chosen_by_their_value_and_said(write):
    text = "path,label,split\n" + "".join(
        f"{p}.png,{n},train\n" for p, n in zip("abcd", (1, 2, 3, 10), strict=True)
    )
    train = load_image_set("csv", None, "train", csv=write(text), train_classes="1-2")
    assert train.class_names == {0: "1", 1: "2"}
    assert train.notes == ("train: classes 1-2 of 4: 1 to 2",)
    names = load_image_set("csv", None, "train", csv=write(text), train_classes="4,1")
    assert names.notes == ("train: classes 1,4 of 4: 1 to 10",)


def test_labels_and_folds_that_mean_the_same_are_read_as_the_same(write):
    rows = ["a.png,cat,0.0", "b.png,cat ,1.0", "c.png,3.0,0", "d.png,3,1", "e.png,e\u0301,"]
    file = write("path,label,fold\n" + "\n".join([*rows, "f.png,\u00e9,0"]) + "\n", "utf-8-sig")
    test = load_image_set("csv", None, "test", csv=file, fold=0)
    assert list(test.class_names.values()) == ["3", "cat", "\u00e9"]
    assert load_image_set("csv", None, "train", csv=file, fold=0).class_names == {0: "3", 1: "cat"}
    assert test.notes == (
        "read as the same: spaces around labels (1), composed characters in labels (1), "
        ".0 behind labels (1)",
    )
    assert test.left_out.describe() == f"left out of {file}: 1 row in no fold"
    versions = write("path,label,split\na.png,1.0,test\nb.png,1.5,test\n")
    assert load_image_set("csv", None, "test", csv=versions).class_names == {0: "1.0", 1: "1.5"}
    both = write("path,label,split\na.png,1.0,test\nb.png,1.5,test\nc.png,1,test\n")
    assert load_image_set("csv", None, "test", csv=both).class_names == {0: "1", 1: "1.5"}


ROLES = """path,label,split,is_query,is_gallery
a.png,1,train,,
b.png,2,validation,True,False
c.png,2,validation,False,True
d.png,2,validation,1.0,1
e.png,2,validation,nan,0
"""


@pytest.mark.parametrize("with_split", [True, False])
def test_queries_and_gallery_are_those_of_open_metric_learning(write, with_split):
    text = ROLES if with_split else ROLES.replace(",split", "").replace(",validation", "")
    file = write(text if with_split else text.replace(",train", ""))
    test = load_image_set("csv", None, "test", csv=file)
    assert test.is_query.tolist() == [True, False, True]
    assert test.is_gallery.tolist() == [False, True, True]
    train = load_image_set("csv", None, "train", csv=file)
    assert train.is_self_retrieval and len(train) == (1 if with_split else 2)
    if with_split:
        assert "1 row that is neither query nor gallery" in test.left_out.describe()
    with pytest.raises(ValueError, match="expected True or False as is_query, found 'maybe'"):
        load_image_set("csv", None, "test", csv=write(ROLES.replace("1.0", "maybe")))


def test_the_same_path_twice_is_refused_but_another_box_is_another_image(write):
    rows = "a.png,1,test{}\nb.png,1,test{}\n./a.png,2,test{}\n"
    twice = load_image_set(
        "csv", None, "test", csv=write("path,label,split\n" + rows.format("", "", ""))
    )
    with pytest.raises(ImageError, match=r":4: .*a.png is listed in .*list.csv:2 already"):
        twice.require_whole()
    boxes = rows.format(",0,0,9,9", ",0,0,9,9", ",5,5,9,9")
    text = "path,label,split,x_1,y_1,x_2,y_2\n" + boxes
    assert len(load_image_set("csv", None, "test", csv=write(text)).require_whole()) == 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_others_name_their_columns(write, delimiter):
    text = 'Image,Id,part,cam,split\na.png,"w_1, ""old""",train,c1,x\nb.png,5,query,c1,x\n'
    text += "c.png,5,gallery,c2,x\nd.png,5,gallery,,x\n"
    if delimiter != ",":
        text = text.replace('"w_1, ""old"""', "w_1 é").replace(",", delimiter)
    names = {"path_column": "Image", "label_column": "Id", "split_column": "part"}
    options = {"csv": write(text, "utf-8-sig"), **names, "group_column": "cam"}
    train, test = (load_image_set("csv", None, split, **options) for split in ("train", "test"))
    assert list(train.class_names.values()) == ['w_1, "old"' if delimiter == "," else "w_1 é"]
    assert train.groups is None and test.groups.tolist() == [0, 1, -1]
    assert test.is_query.tolist() == [True, False, False]
    assert test.is_gallery.tolist() == [False, True, True]
    assert splits_of("csv", None, **options) == ("train", "test")


def test_a_table_of_wildlife_datasets_is_read_as_it_is(write):
    text = 'image_id,identity,path,bbox,split\n1,lion 1,a.png,"[2, 3.4, 5, 6]",train\n'
    text += "2,unknown,b.png,,train\n3,lion 1,c.png,,test\n4,lion 2,d.png,,test\n"
    train, test = (load_image_set("csv", None, s, csv=write(text)) for s in ("train", "test"))
    assert list(test.class_names.values()) == ["lion 1", "lion 2"]
    assert test.boxes.tolist() == [[0, 0, 0, 0]] * 2
    assert train.boxes.tolist() == [[2, 3, 7, 9]]
    assert train.read_image(0).shape == (3, 5, 3)  # within the image
    assert "1 image of no class" in train.left_out.describe()


def test_a_table_of_open_metric_learning_is_read_as_it_is(write):
    text = "label,path,split,is_query,is_gallery,sequence,x_1,y_1,x_2,y_2\n"
    text += "0,a.png,train,,,s1,0,0,5,6\n0,a.png,train,,,s1,1,1,7,4\n"
    text += "1,b.png,validation,True,False,s2,,,,\n1,c.png,validation,False,True,s2,,,,\n"
    text += "1,d.png,validation,False,True,s3,0.0,1.0,4.0,5.0\n"
    train, test = (load_image_set("csv", None, s, csv=write(text)) for s in ("train", "test"))
    assert train.boxes.tolist() == [[0, 0, 5, 6], [1, 1, 7, 4]] and train.repeated == ()
    assert test.groups.tolist() == [1, 1, 2] and test.is_query.tolist() == [True, False, False]
    assert test.boxes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 4, 5]]


def test_junk_is_in_no_split(write):
    text = "path,label,split\na.png,-1,gallery\nb.png,1,query\nc.png,1,gallery\nd.png,0,gallery\n"
    test = load_image_set("csv", None, "test", csv=write(text + "e.png,-1.0,train\n"))
    assert list(test.class_names.values()) == ["0", "1"] and len(test) == 3
    assert "2 images of no class (-1 or unknown)" in test.left_out.describe()
    assert len(load_image_set("csv", None, "all", csv=write(text))) == 3
    with pytest.raises(ValueError, match="all have the label -1"):
        load_image_set("csv", None, "test", csv=write("path,label,split\na.png,-1,test\n"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,label,split\na.png,1,query\n", {}, "has a split query and none gallery"),
        ("path,label,split\na.png,1,gallery\n", {}, "has a split gallery and none query"),
        (
            "path,label,split\na.png,1,query\nb.png,1,gallery\nc.png,1,test\n",
            {},
            ":4: expected a split of query or gallery as elsewhere, found test",
        ),
        (
            "path,label,split,is_query\na.png,1,query,1\nb.png,1,gallery,0\n",
            {},
            "tells queries from the gallery twice",
        ),
        ("Image,Id\na.png,1\n", {"path_column": "image"}, "--path_column=image: "),
        ("a,b\n", {"path_column": "a", "label_column": "a"}, "expected different columns"),
        (
            "path,label,split,x_1,y_1,x_2,y_2\na.png,1,test,5,1,2,9\n",
            {},
            ":2: expected a box with x_1 < x_2",
        ),
        ('path,label,split,bbox\na.png,1,test,"[1, 2]"\n', {}, ":2: expected a box [x, y, width"),
    ],
)
def test_a_table_that_contradicts_itself_is_one_line(write, text, options, message):
    with pytest.raises(ValueError) as caught:
        load_image_set("csv", None, "test", csv=write(text), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_box_outside_of_its_image_names_it(write):
    text = "path,label,split,x_1,y_1,x_2,y_2\na.png,1,test,900,1,950,9\nb.png,1,test,,,,\n"
    test = load_image_set("csv", None, "test", csv=write(text))
    with pytest.raises(ImageError, match=r"a.png: box 900,1,950,9 is outside of its"):
        test.read_image(0)
